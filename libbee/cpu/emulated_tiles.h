/* Tile registers and the instructions of AMX that cpu/amx.c uses, in plain C: Intel's Instruction Set Reference. What
 * the processor would refuse stops the program. */
#ifndef BEE_EMULATED_TILES_H
#define BEE_EMULATED_TILES_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { EMULATED_TILES = 8, TILE_ROWS = 16, TILE_ROW_BYTES = 64 };

typedef struct EmulatedTiles {
    uint8_t rows[EMULATED_TILES], palette;
    uint16_t row_bytes[EMULATED_TILES];
    uint8_t data[EMULATED_TILES][TILE_ROWS][TILE_ROW_BYTES];
} EmulatedTiles;

static _Thread_local EmulatedTiles emulated_tiles;

static void refuse_unless(int right) {
    if (!right) abort();
}

/* The tile of that number, which must have a shape. */
static uint8_t (*emulated_tile(int tile)) [TILE_ROW_BYTES] {
    refuse_unless(emulated_tiles.palette == 1 && tile >= 0 && tile < EMULATED_TILES && emulated_tiles.rows[tile]);
    return emulated_tiles.data[tile];
}

static void emulate_release(void) {
    memset(&emulated_tiles, 0, sizeof emulated_tiles);
}

static void emulate_configure(const void *shapes) {
    const uint8_t *bytes = shapes;
    emulate_release();
    refuse_unless(bytes[0] == 1);
    for (int i = 1; i < 16; i++) refuse_unless(!bytes[i]);
    for (int tile = 0; tile < 16; tile++) {
        uint16_t row_bytes;
        memcpy(&row_bytes, bytes + 16 + 2 * tile, sizeof row_bytes);
        const int rows = bytes[48 + tile];
        refuse_unless(rows <= TILE_ROWS && row_bytes <= TILE_ROW_BYTES && row_bytes % 4 == 0 && !rows == !row_bytes &&
                      (tile < EMULATED_TILES || !rows));
        if (tile >= EMULATED_TILES) continue;
        emulated_tiles.rows[tile] = (uint8_t)rows;
        emulated_tiles.row_bytes[tile] = row_bytes;
    }
    emulated_tiles.palette = 1;
}

static void emulate_zero(int tile) { memset(emulated_tile(tile), 0, sizeof emulated_tiles.data[tile]); }

static void emulate_load(int tile, const void *memory, size_t stride) {
    uint8_t (*rows)[TILE_ROW_BYTES] = emulated_tile(tile);
    emulate_zero(tile);
    for (int i = 0; i < emulated_tiles.rows[tile]; i++)
        memcpy(rows[i], (const uint8_t *)memory + i * stride, emulated_tiles.row_bytes[tile]);
}

static void emulate_store(int tile, void *memory, size_t stride) {
    uint8_t (*rows)[TILE_ROW_BYTES] = emulated_tile(tile);
    for (int i = 0; i < emulated_tiles.rows[tile]; i++)
        memcpy((uint8_t *)memory + i * stride, rows[i], emulated_tiles.row_bytes[tile]);
}

/* Signed bytes of a by unsigned ones of b, four by four. */
static void emulate_multiply(int sums, int a, int b) {
    uint8_t (*of)[TILE_ROW_BYTES] = emulated_tile(sums), (*left)[TILE_ROW_BYTES] = emulated_tile(a),
            (*right)[TILE_ROW_BYTES] = emulated_tile(b);
    const EmulatedTiles *s = &emulated_tiles;
    refuse_unless(sums != a && sums != b && a != b && s->rows[sums] == s->rows[a] &&
                  s->row_bytes[sums] == s->row_bytes[b] && s->row_bytes[a] == 4 * s->rows[b]);
    for (int m = 0; m < s->rows[sums]; m++)
        for (int n = 0; n < s->row_bytes[sums] / 4; n++) {
            int32_t sum;
            memcpy(&sum, of[m] + 4 * n, sizeof sum);
            for (int k = 0; k < s->row_bytes[a]; k++) sum += (int8_t)left[m][k] * right[k / 4][4 * n + k % 4];
            memcpy(of[m] + 4 * n, &sum, sizeof sum);
        }
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbsud
#define _tile_loadconfig emulate_configure
#define _tile_release emulate_release
#define _tile_zero emulate_zero
#define _tile_loadd emulate_load
#define _tile_stored emulate_store
#define _tile_dpbsud emulate_multiply

#endif
