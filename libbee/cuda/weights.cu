/* Weights from the file's blocks into the order of layout.h. Block formats are those of ggml (ggml-common.h describes
 * each block's fields). Done once per weight, so that what counts is to be plain: each lane gathers byte by byte what
 * its registers will hold. */
#include "kernels.h"

namespace {

/* What a warp rearranges: 16 rows of a span. Rows and columns beyond the weight's are zeros. */
struct Source {
    TensorType type;
    const uint8_t *rows; /* the tile's first row */
    size_t row_bytes;
    int n_rows, first_column, n_columns;
};

__device__ unsigned read_u16(const uint8_t *p) { return (unsigned)(p[0] | p[1] << 8); }

/* Bytes of a block of 32 or 256 columns. */
__device__ int block_bytes(TensorType type) { return span_row_bytes(type) / (span_columns(type) == 64 ? 2 : 1); }

__device__ bool has_minimum(TensorType type) {
    return type == TYPE_Q4_1 || type == TYPE_Q5_1 || type == TYPE_Q4_K || type == TYPE_Q5_K;
}

__device__ int code_bits(TensorType type) {
    switch (type) {
    case TYPE_Q5_0:
    case TYPE_Q5_1:
    case TYPE_Q5_K: return 5;
    case TYPE_Q6_K: return 6;
    case TYPE_Q8_0: return 8;
    default: return 4;
    }
}

/* NULL for what lies outside of the weight. `column` counts from the span's first. */
__device__ const uint8_t *block_at(const Source &s, int row, int column) {
    if (row >= s.n_rows || s.first_column + column >= s.n_columns) return nullptr;
    const int block_columns = span_columns(s.type) == 64 ? 32 : 256;
    return s.rows + (size_t)row * s.row_bytes +
           (size_t)((s.first_column + column) / block_columns) * (size_t)block_bytes(s.type);
}

/* Low nibbles are the first 16 columns, high nibbles the last 16; `fifth` holds one more bit of each. */
__device__ unsigned small_code(const uint8_t *nibbles, const uint8_t *fifth, int column) {
    const unsigned nibble = column < 16 ? nibbles[column] & 15u : (unsigned)nibbles[column - 16] >> 4;
    return fifth ? nibble | (unsigned)(fifth[column / 8] >> column % 8 & 1) << 4 : nibble;
}

/* Groups 2 i and 2 i + 1 are the low and the high nibbles of bytes 32 i to 32 i + 31. */
__device__ unsigned k_code(const uint8_t *nibbles, const uint8_t *fifth, int column) {
    const int group = column / 32, in_group = column % 32;
    const unsigned byte = nibbles[32 * (group / 2) + in_group];
    const unsigned nibble = group % 2 ? byte >> 4 : byte & 15;
    return fifth ? nibble | (unsigned)(fifth[in_group] >> group & 1) << 4 : nibble;
}

/* Per 128 columns, 64 bytes of low nibbles and 32 of bit pairs; group j takes nibble j / 2, pair j. */
__device__ unsigned q6_code(const uint8_t *block, int column) {
    const int half = column / 128, j = column % 128 / 32, in_group = column % 32;
    const unsigned low = block[64 * half + 32 * (j % 2) + in_group], high = block[128 + 32 * half + in_group];
    return (j < 2 ? low & 15 : low >> 4) | (high >> 2 * j & 3) << 4;
}

/* The code as its own number of bits, the zero point taken off; higher bits may be set. */
__device__ unsigned code_at(const Source &s, int row, int column) {
    const uint8_t *block = block_at(s, row, column);
    if (!block) return 0;
    const int in_small = column % 32;
    switch (s.type) {
    case TYPE_Q4_0: return small_code(block + 2, nullptr, in_small) - 8;
    case TYPE_Q4_1: return small_code(block + 4, nullptr, in_small);
    case TYPE_Q5_0: return small_code(block + 6, block + 2, in_small) - 16;
    case TYPE_Q5_1: return small_code(block + 8, block + 4, in_small);
    case TYPE_Q8_0: return block[2 + in_small];
    case TYPE_Q4_K: return k_code(block + 16, nullptr, column);
    case TYPE_Q5_K: return k_code(block + 48, block + 16, column);
    default: return q6_code(block, column) - 32; /* Q6_K */
    }
}

/* The code in byte i of the lane's register j of a group. */
__device__ unsigned register_code(const Source &s, int group, int j, int i) {
    const int lane = lane_of();
    return code_at(s, lane / 4 + 8 * (j % 2), GROUP * group + 4 * (lane % 4) + 16 * (j / 2) + i);
}

__device__ void pack_bytes(const Source &s, int pair, unsigned *out) {
    for (int word = 0; word < 8; word++) {
        unsigned bits = 0;
        for (int i = 0; i < 4; i++) bits |= (register_code(s, 2 * pair + word / 4, word % 4, i) & 0xff) << 8 * i;
        out[(pair * WARP_SIZE + lane_of()) * 8 + word] = bits;
    }
}

__device__ void pack_nibbles(const Source &s, int pair, unsigned *out) {
    for (int j = 0; j < 4; j++) {
        unsigned bits = 0;
        for (int i = 0; i < 8; i++) bits |= (register_code(s, 2 * pair + i % 2, j, i / 2) & 15) << 4 * i;
        out[(pair * WARP_SIZE + lane_of()) * 4 + j] = bits;
    }
}

__device__ void pack_planes(const Source &s, int pair, unsigned *out) {
    const int more = code_bits(s.type) - 4; /* 1: one word for both groups; 2: one for each */
    unsigned words[2] = {0, 0};
    for (int group = 0; group < 2; group++)
        for (int j = 0; j < 4; j++)
            for (int i = 0; i < 4; i++) {
                const unsigned high = register_code(s, 2 * pair + group, j, i) >> 4;
                if (more == 1)
                    words[0] |= (high & 1) << (8 * i + 4 * group + j);
                else
                    words[group] |= (high & 3) << (8 * i + 2 * j);
            }
    for (int word = 0; word < more; word++) out[(pair * WARP_SIZE + lane_of()) * more + word] = words[word];
}

__device__ void pack_small_scales(const Source &s, uint16_t *out) {
    const int row = lane_of() / 2, group = lane_of() % 2, each = has_minimum(s.type) ? 2 : 1;
    const uint8_t *block = block_at(s, row, GROUP * group);
    for (int i = 0; i < each; i++) out[(row * 2 + group) * each + i] = (uint16_t)(block ? read_u16(block + 2 * i) : 0);
}

/* Six bits each; the last four scales and minima are split over two bytes. */
__device__ unsigned k_scale(const uint8_t *packed, int group) {
    return group < 4 ? packed[group] & 63u : (packed[group + 4] & 15u) | (unsigned)(packed[group - 4] >> 6) << 4;
}

__device__ unsigned k_minimum(const uint8_t *packed, int group) {
    return group < 4 ? packed[group + 4] & 63u
                     : (unsigned)(packed[group + 4] >> 4) | (unsigned)(packed[group] >> 6) << 4;
}

__device__ void pack_k_scales(const Source &s, unsigned *out) {
    const int row = lane_of() % TILE_ROWS;
    if (lane_of() >= TILE_ROWS) return;
    const uint8_t *block = block_at(s, row, 0);
    unsigned words[3] = {0, 0, 0};
    for (int group = 0; block && group < 8; group++) {
        const uint64_t both = k_scale(block + 4, group) | k_minimum(block + 4, group) << 6;
        const uint64_t placed = both << 12 * group % 32;
        words[12 * group / 32] |= (unsigned)placed;
        if (placed >> 32) words[12 * group / 32 + 1] |= (unsigned)(placed >> 32);
    }
    for (int word = 0; word < 3; word++) out[word * TILE_ROWS + row] = words[word];
    out[3 * TILE_ROWS + row] = block ? read_u16(block) | read_u16(block + 2) << 16 : 0;
}

__device__ void pack_q6_scales(const Source &s, uint8_t *out) {
    const int row = lane_of() % TILE_ROWS;
    if (lane_of() >= TILE_ROWS) return;
    const uint8_t *block = block_at(s, row, 0);
    for (int i = 0; i < 16; i++) out[(i / 4 * TILE_ROWS + row) * 4 + i % 4] = block ? block[192 + i] : 0;
    ((uint16_t *)(out + 16 * TILE_ROWS))[row] = (uint16_t)(block ? read_u16(block + 208) : 0);
}

__device__ void pack_codes(const Source &s, uint8_t *out) {
    const int bits = code_bits(s.type), n_pairs = span_columns(s.type) / 64;
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
