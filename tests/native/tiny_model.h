/* Small models with random weights, written as GGUF files in memory: a `llama` target and a `dflash` drafter that fits
 * it. Sizes are odd where the format allows it. */
#ifndef BEE_TESTS_TINY_MODEL_H
#define BEE_TESTS_TINY_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "bee.h"

typedef struct TinyFile {
    int descriptor;
    char path[64];
} TinyFile;

typedef struct TinyTarget {
    int n_vocab; /* at least 4 */
    int n_layer, n_embd;
    int n_ctx;
    uint64_t seed;
    float sharpness;  /* of the logits: the head's weights are multiplied by it */
    bool not_finite;  /* one weight of the last layer is NaN */
    int broken_token; /* whose embedding is NaN; 0: none */
    bool other_words; /* another vocabulary of the same size */
    bool remembers;   /* its first layer is a short convolution */
} TinyTarget;

typedef struct TinyDrafter {
    int block_size;
    bool causal;
    int n_draft_vocab; /* rows of a reduced head; 0: all of the target's */
    uint64_t seed;
} TinyDrafter;

TinyFile tiny_target(const TinyTarget *target);
TinyFile tiny_drafter(const TinyTarget *target, const TinyDrafter *drafter);
void tiny_file_close(TinyFile *file);

#endif
