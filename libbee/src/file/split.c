/* Names of the parts of a split model, as llama.cpp writes them. */
#include "split.h"

#include <stdlib.h>
#include <string.h>

enum { DIGITS = 5, ENDING_LENGTH = 1 + DIGITS + 4 + DIGITS + 5 }; /* -00002-of-00005.gguf */

static bool read_digits(const char *text, int *out) {
    *out = 0;
    for (int i = 0; i < DIGITS; i++) {
        if (text[i] < '0' || text[i] > '9') return false;
        *out = 10 * *out + (text[i] - '0');
    }
    return true;
}

bool split_numbers(const char *path, int *number, int *count) {
    const size_t length = strlen(path);
    if (length < ENDING_LENGTH) return false;
    const char *ending = path + length - ENDING_LENGTH;
    return ending[0] == '-' && read_digits(ending + 1, number) && memcmp(ending + 1 + DIGITS, "-of-", 4) == 0 &&
           read_digits(ending + 1 + DIGITS + 4, count) && strcmp(ending + 1 + DIGITS + 4 + DIGITS, ".gguf") == 0;
}

char *split_part_path(const char *path, int number) {
    const size_t size = strlen(path) + 1;
    char *other = malloc(size);
    if (!other) return NULL;
    memcpy(other, path, size);
    char *digit = other + size - 1 - ENDING_LENGTH + DIGITS;
    for (int i = 0; i < DIGITS; i++, number /= 10) *digit-- = (char)('0' + number % 10);
    return other;
}
