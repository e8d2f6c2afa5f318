/* ggml's tensor types: their names and how they lie in memory. */
#ifndef BEE_TENSOR_TYPES_H
#define BEE_TENSOR_TYPES_H

#include <stdbool.h>
#include <stdint.h>

typedef struct TensorTypeLayout {
    const char *name;
    uint32_t block_elements; /* consecutive elements of a row that are stored together */
    uint32_t block_bytes;    /* 0: a type that ggml has given up, of no known layout */
    bool runs;               /* this library computes with it: one of types/ */
} TensorTypeLayout;

/* NULL for a number that this library has no name for. */
const TensorTypeLayout *tensor_type_layout(uint32_t type);

/* The names of the types that run, for messages. */
extern const char *const tensor_types_that_run;

#endif
