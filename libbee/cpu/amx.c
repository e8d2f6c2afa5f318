/* Products of many tokens by tile registers (AMX). One instruction adds the products of a group's columns for 16 tokens
 * and 16 rows; a group's codes, in the order of packed.h, are its second operand as they are:
 *
 *     sums: 16 tokens x 16 rows  +=  activations: 16 tokens x 32 columns  x  codes: 8 x (16 rows x 4 columns)
 *
 * The sums are those of other instructions, bit for bit, and pass through the same scales in the same order
 * (products.h). */
#include "amx.h"

#define TILE_SUMS 1
#include "products.h"
#if defined(BEE_EMULATE_TILES)
#include "emulated_tiles.h"
#endif

/* Tiles; compilers want their numbers as text. */
#define SUMS_0 0
#define SUMS_1 1
#define ACTIVATIONS 2
#define GROUP_CODES 3
#define HALF_ACTIVATIONS 4
#define HALF_CODES 5

/* What LDTILECFG reads. */
typedef struct TileShapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} TileShapes;

/* Sums; activations and codes of a group, and of half of one. */
static const TileShapes tile_shapes = {
    .palette = 1,
    .row_bytes = {64, 64, 32, 64, 16, 64},
    .rows = {TILE, TILE, TILE, 8, TILE, 4},
};

INLINE void tile_multiply(const RCODES *codes, const int8_t *x, size_t x_stride, bool halves,
                          int32_t out[2][TILE][BLOCK_ROWS]) {
    _Alignas(64) uint8_t words[8 * 64];
    UNROLL for (int j = 0; j < 8; j++) _mm512_store_si512(words + 64 * j, codes[j]);
    escape(words); /* compilers do not know what tiles read and write */
    _tile_zero(SUMS_0);
    if (halves) {
        _tile_zero(SUMS_1);
        _tile_loadd(HALF_ACTIVATIONS, x, x_stride);
        _tile_loadd(HALF_CODES, words, 64);
        _tile_dpbsud(SUMS_0, HALF_ACTIVATIONS, HALF_CODES);
        _tile_loadd(HALF_ACTIVATIONS, x + 16, x_stride);
        _tile_loadd(HALF_CODES, words + 256, 64);
        _tile_dpbsud(SUMS_1, HALF_ACTIVATIONS, HALF_CODES);
        _tile_stored(SUMS_1, out[1], 64);
    } else {
        _tile_loadd(ACTIVATIONS, x, x_stride);
        _tile_loadd(GROUP_CODES, words, 64);
        _tile_dpbsud(SUMS_0, ACTIVATIONS, GROUP_CODES);
    }
    _tile_stored(SUMS_0, out[0], 64);
    escape(out);
}

#define WHOLE_TILES(NAME, name, number) CODES(multiply_##name, tile, TILE, NAME)
#define FIND_WHOLE_TILES(NAME, name, number) \
    case TYPE_##NAME: return multiply_##name##_tile;

QUANTISED_TYPES(WHOLE_TILES)

INLINE Multiply multiply_of(TensorType type) {
    switch (type) {
        QUANTISED_TYPES(FIND_WHOLE_TILES)
    default: return NULL;
    }
}

static void multiply_block(const Weight *weight, int block, const Operand *in, int n_tokens, float *out,
                           size_t out_stride, bool add) {
    const uint8_t *w = weight->data + (size_t)block * weight->block_bytes;
    const Multiply multiply = multiply_of(weight->type);
    _tile_loadconfig(&tile_shapes);
    for (int token = 0; token < n_tokens; token += TILE)
        multiply(weight, w, in, token, TILE, out + (size_t)token * out_stride, out_stride, add);
    _tile_release(); /* or the system saves eight kilobytes whenever another thread has its turn */
}

void bee_multiply_tiles(const Weight *weight, int first, int last, const Operand *in, int n_tokens, float *out,
                        size_t out_stride, bool add, MultiplyRest *multiply_rest) {
    const int whole = traits_of(weight->type).bits ? n_tokens / TILE * TILE : 0;
    if (!whole) {
        multiply_rest(weight, first, last, in, n_tokens, out, out_stride, add);
        return;
    }
    Operand rest = *in;
    rest.pairs += (size_t)whole * (size_t)in->n_pairs;
    for (int block = first; block < last; block++, out += BLOCK_ROWS) {
        multiply_block(weight, block, in, whole, out, out_stride, add);
        if (n_tokens > whole)
            multiply_rest(weight, block, block + 1, &rest, n_tokens - whole, out + (size_t)whole * out_stride,
                          out_stride, add);
    }
}
