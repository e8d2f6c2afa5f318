/* How weights, keys and values lie in the device's memory: in the order in which the matrix instructions' fragments
 * take them, so that a warp's loads are whole and in sequence. Plain C, shared by kernels, host and tests.
 *
 * Weights. 16 rows form a tile, which lies in spans of columns: 64, or as many as a block
 * has where these are more. A span takes exactly the file's bytes; columns are padded to whole spans, rows to whole
 * tiles, with zeros.
 *
 *   tile 0 (rows 0-15)                                tile 1 ...
 *   | span 0 (columns 0-63 or 0-255) | span 1 | ... |
 *
 *   a span of a quantised type; pair p is its columns 64 p .. 64 p + 63, that is two groups of 32:
 *   | nibbles: [pair][lane][4 words] | planes: [pair][lane][0, 1 or 2 words] | scales |
 *
 *     A lane = 4 g + t holds, of each group, the four registers of mma_s8_k32's A: register j has the codes of row
 *     g + 8 (j % 2), columns 4 t + 16 (j / 2) + i in byte i.
 *     nibble: word j holds the low four bits of register j of group 0 in the low halves of its bytes, of group 1 in the
 *             high ones. Q8_0 has [pair][lane][8 words] instead: the registers of group 0, then of group 1.
 *     planes: one more bit of each code: byte i, bit r of the word is that of byte i of register r (r = 4 group + j);
 *             two more (Q6_K): word `group`, byte i, bits 2 j and 2 j + 1.
 *
 *     Codes of the types without a minimum are signed, in two's complement of 4, 5, 6 or 8 bits: the zero point is in
 *     them. Of the others they are unsigned.
 *
 *   scales of Q4_0, Q5_0, Q8_0:  float16 [row][group]                     weight = scale * code
 *             Q4_1, Q5_1:        float16 [row][group][scale, minimum]     weight = scale * code + minimum
 *             Q4_K, Q5_K:        12 bytes of each row, [3 words][16 rows]: pair p has bits 24 p .. 24 p + 23: scale of
 *                                group 0, minimum of group 0, scale and minimum of group 1, 6 bits each; then
 *                                float16 [row][d, dmin]                   weight = d * scale * code - dmin * minimum
 *             Q6_K:              int8 [pair][row][4], for each 16 columns; then float16 [row]
 *
 *   a span of another quantised type: the file's blocks, [row][blocks]
 *
 *   a span of F16 or BF16: [4 steps of 16 columns][lane][4 words], the registers of mma_f16_k16's A
 *             of F32: float [64 columns][16 rows]
 *
 * Keys and values: of each region of the cache (src/cache/cache.h) [chunk of 128 positions][layer][head], so that the
 * beginning of a sequence is one piece, and of a head in a chunk of float16 the B fragments of mma_f16_k16:
 *   keys      [position / 8][dimension / 16][lane][4]  lane = 4 (position % 8) + t: dimensions 2 t, 2 t + 1, + 8, + 9
 *   values    [position / 16][dimension / 8][lane][4]  lane = 4 (dimension % 8) + t: positions 2 t, 2 t + 1, + 8, + 9
 *
 * In a chunk of 8 bits codes lie in the same lanes, twice as many dimensions, or positions, side by side, and behind
 * all codes their scales, float16, as the lanes want them:
 *   keys      codes  [position / 8][dimension / 32][lane][8], where the second four are of dimensions + 16. A last
 *                    block of 16 dimensions has [lane][4]
 *             scales [dimension / 32][position / 32][position % 8][4], those of positions + 0, + 8, + 16, + 24
 *   values    codes  [position / 32][dimension / 8][lane][8], where the second four are of positions + 16
 *             scales [dimension / 32][position / 32][t][8], in the order of the lane's positions
 */
#ifndef BEE_CUDA_LAYOUT_H
#define BEE_CUDA_LAYOUT_H

#include "cache/cache.h"
#include "types/types.h"

#if defined(__CUDACC__)
#define LAYOUT static inline __host__ __device__
#else
#define LAYOUT static inline
#endif

enum { TILE_ROWS = 16 };

/* Whether spans are the rows' blocks as the file has them, one row behind the other: of all types but floats and the
 * integers of 4 to 8 bits. */
TRAITS_FUNCTION bool keeps_blocks(TensorType type) {
    const WeightTraits t = traits_of(type);
    return t.kind != INTEGERS || (t.bits && t.bits < 4);
}

/* Columns of a span. */
TRAITS_FUNCTION int span_columns(TensorType type) {
    const int columns = traits_of(type).columns;
    return columns > 64 ? columns : 64;
}

/* Bytes of one row's columns of a span, here as in the file. */
TRAITS_FUNCTION int span_row_bytes(TensorType type) {
    return span_columns(type) / traits_of(type).columns * traits_of(type).bytes;
}

typedef struct DeviceWeight {
    TensorType type;
    int rows, columns;
    int n_tiles, n_spans;
    uint8_t *data; /* 256-byte aligned */
} DeviceWeight;

TRAITS_FUNCTION size_t span_bytes(TensorType type) { return (size_t)TILE_ROWS * (size_t)span_row_bytes(type); }

LAYOUT size_t tile_bytes(const DeviceWeight *w) { return (size_t)w->n_spans * span_bytes(w->type); }

LAYOUT size_t device_weight_bytes(const DeviceWeight *w) { return (size_t)w->n_tiles * tile_bytes(w); }

/* `data` stays NULL. */
LAYOUT DeviceWeight device_weight_layout(TensorType type, int rows, int columns) {
    const int span = span_columns(type);
    DeviceWeight w;
    w.type = type;
    w.rows = rows;
    w.columns = columns;
    w.n_tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    w.n_spans = (columns + span - 1) / span;
    w.data = 0;
    return w;
}

/* Where a head's chunk begins in a region of so many positions, each of position_bytes, in bytes; head_bytes: of one
 * position. */
LAYOUT size_t cache_chunk_at(int n_positions, size_t position_bytes, size_t first_byte, size_t head_bytes, int head,
                             int chunk) {
    const size_t place = (size_t)(chunk % (n_positions / CACHE_CHUNK));
    return (place * position_bytes + first_byte + (size_t)head * head_bytes) * CACHE_CHUNK;
}

/* Where a float16 element lies in its chunk; `position` counts from the chunk's beginning. */
LAYOUT size_t key_place(int head_size, int position, int dimension) {
    const int lane = 4 * (position % 8) + dimension % 8 / 2;
    return ((size_t)(position / 8) * (size_t)(head_size / 16) + (size_t)(dimension / 16)) * 128 + (size_t)lane * 4 +
           (size_t)(dimension % 16 / 8 * 2 + dimension % 2);
}

LAYOUT size_t value_place(int head_size, int position, int dimension) {
    const int lane = 4 * (dimension % 8) + position % 8 / 2;
    return ((size_t)(position / 16) * (size_t)(head_size / 8) + (size_t)(dimension / 8)) * 128 + (size_t)lane * 4 +
           (size_t)(position % 16 / 8 * 2 + position % 2);
}

/* The same of 8 bits: codes, from the chunk's beginning; */
LAYOUT size_t key_code_place(int head_size, int position, int dimension) {
    const int first = dimension / CACHE_BLOCK * CACHE_BLOCK, left = head_size - first;
    const int lane = 4 * (position % 8) + dimension % 8 / 2, width = (left < CACHE_BLOCK ? left : CACHE_BLOCK) / 4;
    return (size_t)(position / 8) * 8 * (size_t)head_size + (size_t)(first * 8) + (size_t)(lane * width) +
           (size_t)(dimension % CACHE_BLOCK / 16 * 4 + dimension % 16 / 8 * 2 + dimension % 2);
}

LAYOUT size_t value_code_place(int head_size, int position, int dimension) {
    const int lane = 4 * (dimension % 8) + position % 8 / 2;
    return ((size_t)(position / 32) * (size_t)(head_size / 8) + (size_t)(dimension / 8)) * 256 + (size_t)lane * 8 +
           (size_t)(position % 32 / 8 * 2 + position % 2);
}

/* and scales, counted from the first, which lies behind the chunk's codes. */
LAYOUT size_t key_scale_place(int position, int dimension) {
    return (size_t)(dimension / CACHE_BLOCK * CACHE_CHUNK + position / 32 * 32 + position % 8 * 4 + position % 32 / 8);
}

LAYOUT size_t value_scale_place(int position, int dimension) {
    return (size_t)(dimension / CACHE_BLOCK * CACHE_CHUNK + position / 32 * 32 + position % 8 / 2 * 8 +
                    position % 32 / 8 * 2 + position % 2);
}

#endif
