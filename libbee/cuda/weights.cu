/* Weights from the file's blocks (types/) into the order of layout.h. Done once per weight, so that what counts is to
 * be plain: each lane gathers byte by byte what its registers will hold. */
#include "kernels.h"

namespace {

/* What a warp rearranges: 16 rows of a span. Rows and columns beyond the weight's are zeros. */
struct Source {
    TensorType type;
    const uint8_t *rows; /* the tile's first row */
    size_t row_bytes;
    int n_rows, first_column, n_columns;
};

/* NULL for what lies outside of the weight. `column` counts from the span's first. */
__device__ const uint8_t *block_at(const Source &s, int row, int column) {
    if (row >= s.n_rows || s.first_column + column >= s.n_columns) return nullptr;
    const WeightTraits t = traits_of(s.type);
    return s.rows + (size_t)row * s.row_bytes + (size_t)((s.first_column + column) / t.columns) * (size_t)t.bytes;
}

/* The lane's register j of a group: four codes, the zero point taken off. */
__device__ unsigned register_codes(const Source &s, int group, int j) {
    const WeightTraits t = traits_of(s.type);
    const int lane = lane_of(), column = GROUP * group + 4 * (lane % 4) + 16 * (j / 2);
    const uint8_t *const block = block_at(s, lane / 4 + 8 * (j % 2), column);
    return block ? bytes_less(block_codes(s.type, block, column % t.columns), t.zero) : 0;
}

__device__ void pack_bytes(const Source &s, int pair, unsigned *out) {
    for (int word = 0; word < 8; word++)
        out[(pair * WARP_SIZE + lane_of()) * 8 + word] = register_codes(s, 2 * pair + word / 4, word % 4);
}

__device__ void pack_nibbles(const Source &s, int pair, unsigned *out) {
    for (int j = 0; j < 4; j++)
        out[(pair * WARP_SIZE + lane_of()) * 4 + j] =
            (register_codes(s, 2 * pair, j) & 0x0f0f0f0fu) | (register_codes(s, 2 * pair + 1, j) & 0x0f0f0f0fu) << 4;
}

__device__ void pack_planes(const Source &s, int pair, unsigned *out) {
    const int more = traits_of(s.type).bits - 4; /* 1: one word for both groups; 2: one for each */
    unsigned words[2] = {0, 0};
    for (int group = 0; group < 2; group++)
        for (int j = 0; j < 4; j++) {
            const unsigned high = register_codes(s, 2 * pair + group, j) >> 4;
            if (more == 1)
                words[0] |= (high & 0x01010101u) << (4 * group + j);
            else
                words[group] |= (high & 0x03030303u) << 2 * j;
        }
    for (int word = 0; word < more; word++) out[(pair * WARP_SIZE + lane_of()) * more + word] = words[word];
}

__device__ void pack_small_scales(const Source &s, uint16_t *out) {
    const int row = lane_of() / 2, group = lane_of() % 2, each = traits_of(s.type).flags & MINIMUM ? 2 : 1;
    const uint8_t *block = block_at(s, row, GROUP * group);
    for (int i = 0; i < each; i++) out[(row * 2 + group) * each + i] = (uint16_t)(block ? read_u16(block + 2 * i) : 0);
}

__device__ void pack_k_scales(const Source &s, unsigned *out) {
    const int row = lane_of() % TILE_ROWS;
    if (lane_of() >= TILE_ROWS) return;
    const uint8_t *block = block_at(s, row, 0);
    unsigned words[3] = {0, 0, 0};
    for (int group = 0; block && group < 8; group++) {
        const BlockScale scale = k_scale(block, GROUP * group);
        const uint64_t both = (uint64_t)(scale.small | -scale.small_minimum << 6);
        const uint64_t placed = both << 12 * group % 32;
        words[12 * group / 32] |= (unsigned)placed;
        if (placed >> 32) words[12 * group / 32 + 1] |= (unsigned)(placed >> 32);
    }
    for (int word = 0; word < 3; word++) out[word * TILE_ROWS + row] = words[word];
    out[3 * TILE_ROWS + row] = block ? read_u32(block) : 0;
}

__device__ void pack_q6_scales(const Source &s, uint8_t *out) {
    const int row = lane_of() % TILE_ROWS;
    if (lane_of() >= TILE_ROWS) return;
    const uint8_t *block = block_at(s, row, 0);
    for (int i = 0; i < 16; i++)
        out[(i / 4 * TILE_ROWS + row) * 4 + i % 4] = (uint8_t)(block ? q6_k_scale(block, 16 * i).small : 0);
    ((uint16_t *)(out + 16 * TILE_ROWS))[row] = block ? q6_k_scale(block, 0).scale : (uint16_t)0;
}

__device__ void pack_codes(const Source &s, uint8_t *out) {
    const int bits = traits_of(s.type).bits, n_pairs = span_columns(s.type) / 64;
    const int code_bytes = n_pairs * WARP_SIZE * 4 * bits; /* of a lane and pair: as many words as a code has bits */
    uint8_t *planes = out + n_pairs * WARP_SIZE * 16, *scales = out + code_bytes;
    for (int pair = 0; pair < n_pairs; pair++) {
        if (bits == 8) {
            pack_bytes(s, pair, (unsigned *)out);
            continue;
        }
        pack_nibbles(s, pair, (unsigned *)out);
        if (bits > 4) pack_planes(s, pair, (unsigned *)planes);
    }
    if (s.type == TYPE_Q6_K)
        pack_q6_scales(s, scales);
    else if (n_pairs > 1)
        pack_k_scales(s, (unsigned *)scales);
    else
        pack_small_scales(s, (uint16_t *)scales);
}

/* Blocks as they are. */
__device__ void copy_blocks(const Source &s, uint8_t *out) {
    const WeightTraits t = traits_of(s.type);
    const int row_bytes = span_row_bytes(s.type);
    for (int i = lane_of(); i < TILE_ROWS * row_bytes; i += WARP_SIZE) {
        const uint8_t *const block = block_at(s, i / row_bytes, i % row_bytes / t.bytes * t.columns);
        out[i] = block ? block[i % row_bytes % t.bytes] : (uint8_t)0;
    }
}

__device__ unsigned half_at(const Source &s, int row, int column) {
    if (row >= s.n_rows || s.first_column + column >= s.n_columns) return 0;
    return read_u16(s.rows + (size_t)row * s.row_bytes + 2 * (size_t)(s.first_column + column));
}

__device__ void pack_halves(const Source &s, unsigned *out) {
    const int lane = lane_of();
    for (int i = 0; i < 16; i++) {
        const int row = lane / 4 + i % 4 % 2 * 8, column = i / 4 * 16 + lane % 4 * 2 + i % 4 / 2 * 8;
        out[(i / 4 * WARP_SIZE + lane) * 4 + i % 4] = half_at(s, row, column) | half_at(s, row, column + 1) << 16;
    }
}

__device__ void pack_singles(const Source &s, unsigned *out) {
    for (int i = lane_of(); i < 64 * TILE_ROWS; i += WARP_SIZE) {
        const int row = i % TILE_ROWS, column = s.first_column + i / TILE_ROWS;
        const uint8_t *at = s.rows + (size_t)row * s.row_bytes + 4 * (size_t)column;
        out[i] = row < s.n_rows && column < s.n_columns ? read_u16(at) | read_u16(at + 2) << 16 : 0;
    }
}

/* A warp for each tile (y) and span (x). */
__global__ void pack_kernel(DeviceWeight weight, TensorType type, const uint8_t *raw, size_t row_bytes, int first_row,
                            int n_rows) {
    const int tile = (int)blockIdx.y, span = (int)blockIdx.x;
    const Source s = {type,
                      raw + (size_t)(tile * TILE_ROWS) * row_bytes,
                      row_bytes,
                      n_rows - tile * TILE_ROWS,
                      span * span_columns(type),
                      weight.columns};
    uint8_t *out =
        weight.data + (size_t)(first_row / TILE_ROWS + tile) * tile_bytes(&weight) + (size_t)span * span_bytes(type);
    if (type == TYPE_F32)
        pack_singles(s, (unsigned *)out);
    else if (type == TYPE_F16 || type == TYPE_BF16)
        pack_halves(s, (unsigned *)out);
    else if (keeps_blocks(type))
        copy_blocks(s, out);
    else
        pack_codes(s, out);
}

} // namespace

void queue_pack(cudaStream_t stream, const DeviceWeight *weight, TensorType type, const uint8_t *raw, size_t row_bytes,
                int first_row, int n_rows) {
    const int most_tiles = 32768; /* of a launch: the grid's y is limited */
    for (int row = 0; row < n_rows; row += most_tiles * TILE_ROWS) {
        const int rows = n_rows - row < most_tiles * TILE_ROWS ? n_rows - row : most_tiles * TILE_ROWS;
        launch(stream, dim3((unsigned)weight->n_spans, (unsigned)((rows + TILE_ROWS - 1) / TILE_ROWS)), dim3(WARP_SIZE),
               0, pack_kernel, *weight, type, raw + (size_t)row * row_bytes, row_bytes, first_row + row, rows);
    }
}
