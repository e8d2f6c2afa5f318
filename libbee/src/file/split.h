/* Names of the parts of a split model: PREFIX-00002-of-00005.gguf. */
#ifndef BEE_SPLIT_H
#define BEE_SPLIT_H

#include <stdbool.h>

/* What the end of a path says: the number of the part, from 1, and how many there are; false where it says nothing. */
bool split_numbers(const char *path, int *number, int *count);

/* The path of another part of the same model, NUL-terminated; the caller frees it. `path` has numbers. NULL: no memory.
 */
char *split_part_path(const char *path, int number);

#endif
