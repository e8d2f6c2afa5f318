/* ggml's tensor types, decoded one weight at a time and without rounding, from the description of the blocks in
 * ggml-common.h: the reference for the packing and the kernels, written apart from both. */
#ifndef BEE_TESTS_GGML_BLOCKS_H
#define BEE_TESTS_GGML_BLOCKS_H

#include <stdbool.h>
#include <stddef.h>

#include "file/gguf.h"
#include "random.h"

typedef struct BlockType {
    TensorType type;
    const char *name;
    int columns, bytes; /* of a block */
    int term;           /* columns that share a scale, at most 32; of float types 1 */
} BlockType;

enum { N_BLOCK_TYPES = 28 };
extern const BlockType block_types[N_BLOCK_TYPES];

/* weight = scaled + minimum, both exact. `scaled` is scale * (code - zero); float types have no minimum. */
typedef struct ExactWeight {
    double scaled, minimum;
} ExactWeight;

ExactWeight exact_weight(const BlockType *type, const uint8_t *row, int column);

/* The bytes of a block that hold codes and no scales, in one piece. */
void code_bytes_of(const BlockType *type, int *begin, int *end);

/* Gives every block scales as a usual model has them: weights become small. */
void make_small(Tensor *tensor);

/* A matrix of random blocks, to be freed with `free((void *)tensor.data)`. Codes take every value. Scales take
 * extreme ones too (zero, negative, the least subnormal, the largest float16) and, where `finite` is false, infinity
 * and NaN. Float types hold numbers between 2^-40 and 2^40, or any bits. */
Tensor random_tensor(const BlockType *type, int rows, int columns, bool finite, Random *random);

#endif
