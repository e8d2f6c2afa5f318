#include "tensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "architectures/architecture.h"
#include "error.h"
#include "file/tensor.h"
#include "file/tensor_types.h"
#include "types/types.h"

enum { MAX_VECTOR = 1 << 16 };

void fail_memory(Loader *l, const char *name) {
    static const char format[] = "out of memory while loading tensor '%s'";
    l->status = l->backend ? fail_to_make(l->ops, l->backend, l->error, format, name)
                           : bee_fail(l->error, BEE_ERROR_MEMORY, format, name);
}

/* What a device says of a weight that it did not make. */
static void fail_weight(Loader *l, const char *name, const bee_error *reason) {
    if (reason->status)
        l->status = bee_fail(l->error, reason->status, "%s", reason->message);
    else
        fail_memory(l, name);
}

bool is_bound(const Loader *l, const char *name) {
    for (uint64_t i = 0; i < l->n_bound; i++)
        if (l->bound[i] == name) return true;
    return false;
}

void bind_tensor(Loader *l, const char *name) {
    if (!is_bound(l, name)) l->bound[l->n_bound++] = name;
}

/* As many dimensions as the tensor has, at least two. */
static void fail_shape(Loader *l, const char *name, const Tensor *t, int64_t rows, int64_t columns, int64_t depth) {
    char found[96] = "", expected[96];
    for (int i = 0, at = 0; i < t->n_dimensions || i < 2; i++)
        at += snprintf(found + at, sizeof found - (size_t)at, "%s%" PRId64, i ? ", " : "", t->shape[i]);
    int at = snprintf(expected, sizeof expected, "%" PRId64 ", ", columns);
    at += rows < 0 ? snprintf(expected + at, sizeof expected - (size_t)at, "any")
                   : snprintf(expected + at, sizeof expected - (size_t)at, "%" PRId64, rows);
    if (depth > 1) snprintf(expected + at, sizeof expected - (size_t)at, ", %" PRId64, depth);
    l->status = bee_fail(l->error, BEE_ERROR_FORMAT, "tensor '%s': shape is [%s], but the metadata calls for [%s]",
                         name, found, expected);
}

/* `depth` matrices of so many rows: 1 where the tensor is a matrix or a vector. */
static bool find_matrices(Loader *l, const char *name, int64_t rows, int64_t columns, int64_t depth, Tensor *out) {
    if (l->status) return false;
    l->status = gguf_tensor(l->file, name, out, l->error);
    if (l->status) return false;
    if (out->type == TYPE_I64) {
        l->status = bee_fail(l->error, BEE_ERROR_UNSUPPORTED, "tensor '%s': type I64 holds no weights", name);
    } else if (rows == 1 && depth == 1 &&
               traits_of(out->type).bits) { /* norms and the like would lose what they are there for */
        l->status =
            bee_fail(l->error, BEE_ERROR_UNSUPPORTED,
                     "tensor '%s' has type %s (%d), which only matrices may have; vectors may be F32, F16, BF16", name,
                     tensor_type_layout(out->type)->name, out->type);
    } else if (out->columns != columns || (rows >= 0 && out->rows != rows * depth) ||
               out->n_dimensions > (depth == 1 ? 2 : 3) || (depth > 1 && out->shape[2] != depth)) {
        fail_shape(l, name, out, rows, columns, depth);
    } else if (out->rows > 1 << 24 || out->rows < 1) {
        l->status =
            bee_fail(l->error, BEE_ERROR_FORMAT, "tensor '%s': %" PRId64 " rows are out of range", name, out->rows);
    }
    if (l->status) return false;
    bind_tensor(l, out->name);
    if (l->made_up && !make_up(l->made_up, out)) fail_memory(l, name);
    return !l->status;
}

bool find_tensor(Loader *l, const char *name, int64_t rows, int64_t columns, Tensor *out) {
    return find_matrices(l, name, rows, columns, 1, out);
}

/* The file is told what will be read: the tensor, and some of what lies behind it, for the disk to be busy while the
 * tensor is packed. It is told of every byte once. */
static void read_ahead(Loader *l, const Tensor *tensor) {
    enum { AHEAD = 32 << 20 };
    const uint64_t end = tensor->offset + tensor->size;
    const bool goes_on =
        l->ahead.file == tensor->holder && tensor->offset >= l->ahead.begin && tensor->offset <= l->ahead.end;
    if (!goes_on) l->ahead = (ReadAhead){tensor->holder, tensor->offset, tensor->offset};
    if (l->ahead.end >= end + AHEAD / 2) return;
    gguf_read_ahead(tensor->holder, l->ahead.end, end + AHEAD);
    l->ahead.end = end + AHEAD;
}

bool read_tensor(Loader *l, Tensor *tensor) {
    if (l->status || tensor->data) return !l->status; /* random weights are there */
    if (l->buffer_size < tensor->size) {
        free(l->buffer);
        l->buffer = malloc((size_t)tensor->size);
        l->buffer_size = l->buffer ? tensor->size : 0;
    }
    if (!l->buffer)
        l->status = bee_fail(l->error, BEE_ERROR_MEMORY, "out of memory while reading tensor '%.*s'",
                             tensor->name_length, tensor->name);
    else
        l->status = gguf_read(tensor, l->buffer, l->error);
    tensor->data = l->buffer;
    return !l->status;
}

/* Lets a weight's data be at hand, or on its way, for a device that reads it by itself. */
static bool read_weight(Loader *l, Tensor *tensor) {
    if (!l->device->reads_tensors) return read_tensor(l, tensor);
    if (!l->status && !tensor->data) read_ahead(l, tensor);
    return !l->status;
}

/* A matrix or a table has been loaded. */
static void tell_progress(Loader *l, uint64_t bytes) {
    LoadProgress *p = l->progress;
    if (l->status || !p->tell) return;
    p->done += bytes;
    if (p->done - p->told < p->total / 128) return; /* a caller may have to wait for its interpreter's turn */
    p->told = p->done;
    if (!p->tell(p->user, p->done < p->total ? p->done : p->total, p->total))
        l->status = bee_fail(l->error, BEE_ERROR_CANCELLED, "loading was cancelled");
}

bool has_tensor(const Loader *l, const char *name, const char *suffix) {
    char full[96];
    snprintf(full, sizeof full, "%s%s", name, suffix);
    return gguf_has_tensor(l->file, full);
}

/* From a file of packed weights, or else from the model's. */
static Weight *make_weight(Loader *l, const char *name, const Tensor *tensor, const int32_t *row_ids, int n_rows) {
    const uint64_t bytes = l->device->matrix_bytes(tensor->type, n_rows, (int)tensor->columns);
    const uint8_t *data = l->packed ? packed_model_next(l->packed, tensor, row_ids, n_rows, bytes) : NULL;
    bee_error reason = {.status = BEE_OK};
    Tensor at_hand = *tensor;
    if (l->status || (!data && !read_weight(l, &at_hand))) return NULL;
    Weight *weight = data ? l->ops->packed->weight_at(l->backend, &at_hand, n_rows, data)
                          : l->ops->weight_new(l->backend, &at_hand, row_ids, n_rows, &reason);
    if (!weight) fail_weight(l, name, &reason);
    if (weight && l->packed) packed_model_add(l->packed, l->ops->packed->weight_data(weight), bytes);
    return weight;
}

Weight *load_weight(Loader *l, const char *name, const Tensor *tensor, const int32_t *row_ids, int n_rows) {
    if (l->status) return NULL;
    const uint64_t bytes = l->device->matrix_bytes(tensor->type, n_rows, (int)tensor->columns);
    l->weight_bytes += bytes;
    Weight *weight = l->backend ? make_weight(l, name, tensor, row_ids, n_rows) : NULL;
    if (weight) tell_progress(l, bytes);
    return weight;
}

/* `columns` numbers from `first` on, of a vector of `whole`, times a factor. */
static float *load_part_of_vector(Loader *l, const char *name, int64_t first, int64_t columns, int64_t whole,
                                  float factor) {
    Tensor tensor;
    if (!find_tensor(l, name, 1, whole, &tensor)) return NULL;
    l->weight_bytes += padded(columns) * sizeof(float);
    if (!l->backend || !read_tensor(l, &tensor)) return NULL;
    float *values = malloc(padded(whole) * sizeof *values);
    float *vector = values ? l->ops->buffer_new(l->backend, padded(columns)) : NULL;
    if (vector) {
        dequantize_row(&tensor, 0, values);
        for (int64_t i = 0; i < whole; i++) values[i] *= factor;
        l->ops->buffer_write(l->backend, vector, values + first, (size_t)columns * sizeof *values);
    } else {
        fail_memory(l, name);
    }
    free(values);
    return vector;
}

float *load_vector(Loader *l, const char *name, int64_t columns) {
    return load_part_of_vector(l, name, 0, columns, columns, 1);
}

float *load_numbers(Loader *l, const char *name, int64_t rows, int64_t columns, int slot_kind) {
    Tensor tensor;
    if (!find_tensor(l, name, rows, columns, &tensor)) return NULL;
    l->weight_bytes += padded(rows * columns) * sizeof(float);
    if (!l->backend || !read_tensor(l, &tensor)) return NULL;
    float *row = malloc((size_t)columns * sizeof *row), *values = malloc((size_t)(rows * columns) * sizeof *values);
    float *buffer = row && values ? l->ops->buffer_new(l->backend, padded(rows * columns)) : NULL;
    for (int64_t r = 0; buffer && r < rows; r++) {
        dequantize_row(&tensor, r, row);
        for (int64_t c = 0; c < columns; c++)
            values[slot_kind == SLOT_COLUMNS ? c * rows + r : r * columns + c] =
                slot_kind == SLOT_DECAY && l->made_up ? -1 : row[c];
    }
    if (buffer)
        l->ops->buffer_write(l->backend, buffer, values, (size_t)(rows * columns) * sizeof *values);
    else
        fail_memory(l, name);
    free(values);
    free(row);
    return buffer;
}

float load_number(Loader *l, const char *name, float fallback) {
    Tensor tensor;
    float value = fallback;
    if (!l->status && gguf_has_tensor(l->file, name) && find_tensor(l, name, 1, 1, &tensor) && read_tensor(l, &tensor))
        dequantize_row(&tensor, 0, &value);
    return value;
}

/* Rows in stripes: numbers of heads, or the like, that lie between others. */
static Weight *load_stripes(Loader *l, const char *name, const Tensor *tensor, Part part) {
    int32_t *ids = malloc((size_t)part.rows * sizeof *ids);
    for (int64_t i = 0; ids && i < part.rows; i++)
        ids[i] = (int32_t)(i / part.stripe * 2 * part.stripe + (part.odd ? part.stripe : 0) + i % part.stripe);
    Weight *weight = ids ? load_weight(l, name, tensor, ids, (int)part.rows) : NULL;
    if (!ids) fail_memory(l, name);
    free(ids);
    return weight;
}

void load_matrix(Loader *l, const char *name, Part part, int64_t columns, ScaleUse use, Matrix *out) {
    char full[96];
    Tensor tensor;
    *out = (Matrix){.scale = 1};
    snprintf(full, sizeof full, "%s.weight", name);
    if (!find_tensor(l, full, part.whole, columns, &tensor)) return;
    if (part.stripe) {
        out->weight = load_stripes(l, full, &tensor, part);
    } else {
        if (part.rows != tensor.rows && part.whole >= 0) tensor = tensor_rows(&tensor, part.first, part.rows);
        out->weight = load_weight(l, full, &tensor, NULL, (int)tensor.rows);
    }
    snprintf(full, sizeof full, "%s.scale", name);
    if (use != SCALES_NOTHING) out->scale = load_number(l, full, 1);
    const float factor = use == SCALES_SUM && tensor.type != TYPE_NVFP4 ? out->scale : 1;
    snprintf(full, sizeof full, "%s.bias", name);
    if (gguf_has_tensor(l->file, full) && !part.stripe)
        out->bias =
            load_part_of_vector(l, full, part.first, tensor.rows, part.whole < 0 ? tensor.rows : part.whole, factor);
}

/* Scales of experts, as the file has them; false without. */
static bool load_scales(Loader *l, const char *name, int n, float *out) {
    char full[96];
    Tensor tensor;
    snprintf(full, sizeof full, "%s.scale", name);
    if (l->status || !gguf_has_tensor(l->file, full) || !find_tensor(l, full, 1, n, &tensor)) return false;
    if (!l->backend || !read_tensor(l, &tensor)) return false;
    dequantize_row(&tensor, 0, out);
    return true;
}

/* In the room of them all, whose name is the first one's. */
static Weight *make_expert(Loader *l, const char *name, Weight *room, int index, const Tensor *tensor) {
    Tensor at_hand = *tensor;
    if (!read_tensor(l, &at_hand)) return index ? NULL : room;
    Weight *weight = l->ops->expert_new(l->backend, room, index, &at_hand);
    if (!weight) fail_memory(l, name);
    return weight || index ? weight : room;
}

static void load_expert_weights(Loader *l, const char *name, const Tensor *tensor, Part part, int n,
                                const float *scales, Matrix *out) {
    const int rows = (int)part.rows, columns = (int)tensor->columns;
    const uint64_t bytes = l->device->experts_bytes(tensor->type, rows, columns, n);
    const bool together = l->backend && l->ops->experts_new;
    l->weight_bytes += bytes;
    if (together && !(out->weight = l->ops->experts_new(l->backend, tensor->type, rows, columns, n, scales)))
        fail_memory(l, name);
    for (int e = 0; e < n && !l->status && l->backend; e++) {
        const Tensor whole = tensor_matrix(tensor, e);
        const Tensor matrix = tensor_rows(&whole, part.first, part.rows);
        out[e].weight =
            together ? make_expert(l, name, out->weight, e, &matrix) : make_weight(l, name, &matrix, NULL, rows);
        tell_progress(l, bytes / (uint64_t)n);
    }
}

/* One behind the other, in one buffer, which is the first one's. */
static void load_expert_biases(Loader *l, const char *name, int64_t rows, int n, Matrix *out) {
    Tensor tensor;
    const size_t stride = padded(rows);
    if (!find_tensor(l, name, n, rows, &tensor)) return;
    l->weight_bytes += l->device->buffer_bytes((size_t)n * stride * sizeof(float));
    if (!l->backend || !read_tensor(l, &tensor)) return;
    float *row = calloc(stride, sizeof *row), *biases = row ? l->ops->buffer_new(l->backend, n * stride) : NULL;
    if (!biases) fail_memory(l, name);
    for (int e = 0; biases && e < n; e++) {
        out[e].bias = biases + (size_t)e * stride;
        dequantize_row(&tensor, e, row);
        l->ops->buffer_write(l->backend, out[e].bias, row, (size_t)rows * sizeof *row);
    }
    free(row);
}

void load_experts(Loader *l, const char *name, Part part, int64_t columns, int n_experts, Matrix **out) {
    char full[96];
    float scales[MAX_EXPERTS];
    Tensor tensor;
    snprintf(full, sizeof full, "%s.weight", name);
    if (!find_matrices(l, full, part.whole, columns, n_experts, &tensor)) return;
    Matrix *matrices = *out = l->backend ? calloc((size_t)n_experts, sizeof **out) : NULL;
    if (l->backend && !matrices) fail_memory(l, full);
    const bool scaled = load_scales(l, name, n_experts, scales);
    for (int e = 0; matrices && e < n_experts; e++) matrices[e].scale = scaled ? scales[e] : 1;
    if (!l->status) load_expert_weights(l, full, &tensor, part, n_experts, scaled ? scales : NULL, matrices);
    snprintf(full, sizeof full, "%s.bias", name);
    if (!l->status && gguf_has_tensor(l->file, full)) load_expert_biases(l, full, part.rows, n_experts, matrices);
}

void load_whole_matrix(Loader *l, const char *name, int64_t rows, int64_t columns, Matrix *out) {
    load_matrix(l, name, (Part){.rows = rows, .whole = rows}, columns, SCALES_PRODUCT, out);
}

void matrix_free(const Ops *ops, Backend *backend, Matrix *matrix) {
    ops->weight_free(backend, matrix->weight);
    ops->buffer_free(backend, matrix->bias);
}

static Table *make_table(Loader *l, const char *name, const Tensor *tensor) {
    const uint8_t *data =
        l->packed ? packed_model_next(l->packed, tensor, NULL, (int)tensor->rows, tensor->size) : NULL;
    bee_error reason = {.status = BEE_OK};
    Tensor at_hand = *tensor;
    if (l->status || (!data && !read_weight(l, &at_hand))) return NULL;
    Table *table =
        data ? l->ops->packed->table_at(l->backend, &at_hand, data) : l->ops->table_new(l->backend, &at_hand, &reason);
    if (!table) fail_weight(l, name, &reason);
    if (table && l->packed) packed_model_add(l->packed, l->ops->packed->table_data(table), tensor->size);
    return table;
}

Table *load_table(Loader *l, const char *name, const Tensor *tensor) {
    if (l->status) return NULL;
    const uint64_t bytes = l->device->buffer_bytes(tensor->size);
    l->weight_bytes += bytes;
    Table *table = l->backend ? make_table(l, name, tensor) : NULL;
    if (table) tell_progress(l, bytes);
    return table;
}

void find_embedding(Loader *l, Model *m) {
    if (!find_tensor(l, "token_embd.weight", -1, m->shape.n_embd, &m->embedding)) return;
    if (m->shape.n_vocab && m->shape.architecture->about.is_drafter && m->embedding.rows != m->shape.n_vocab)
        l->status = bee_fail(l->error, BEE_ERROR_FORMAT, "tensor 'token_embd.weight': %" PRId64 " rows for %d tokens",
                             m->embedding.rows, m->shape.n_vocab);
    m->shape.n_vocab = (int)m->embedding.rows;
    m->owns_table = true;
}

void load_embedding_rows(Loader *l, Model *m, bool tied) {
    if (!tied || !l->device->rows_of_matrices) {
        m->table = load_table(l, "token_embd.weight", &m->embedding);
    } else if (!l->status && l->backend) {
        m->table = l->ops->table_of(l->backend, m->head.weight);
        if (!m->table) fail_memory(l, "token_embd.weight");
    }
}
