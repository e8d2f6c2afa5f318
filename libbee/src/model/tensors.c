#include "tensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "architectures/architecture.h"
#include "error.h"
#include "file/tensor.h"

void fail_memory(Loader *l, const char *name) {
    l->status = bee_fail(l->error, BEE_ERROR_MEMORY, "out of memory while loading tensor '%s'", name);
}

bool find_tensor(Loader *l, const char *name, int64_t rows, int64_t columns, Tensor *out) {
    if (l->status) return false;
    l->status = gguf_tensor(l->file, name, out, l->error);
    if (l->status) return false;
    if (out->type == TYPE_I64) {
        l->status = bee_fail(l->error, BEE_ERROR_UNSUPPORTED, "tensor '%s': type I64 holds no weights", name);
    } else if (out->columns != columns || (rows >= 0 && out->rows != rows) || out->n_dimensions > 2) {
        char expected[32] = "any";
        if (rows >= 0) snprintf(expected, sizeof expected, "%" PRId64, rows);
        l->status =
            bee_fail(l->error, BEE_ERROR_FORMAT,
                     "tensor '%s': shape is [%" PRId64 ", %" PRId64 "], but the metadata calls for [%" PRId64 ", %s]",
                     name, out->columns, out->rows, columns, expected);
    } else if (out->rows > 1 << 24 || out->rows < 1) {
        l->status =
            bee_fail(l->error, BEE_ERROR_FORMAT, "tensor '%s': %" PRId64 " rows are out of range", name, out->rows);
    }
    if (l->status) return false;
    l->bound[l->n_bound++] = out->name;
    if (l->made_up && !make_up(l->made_up, out)) fail_memory(l, name);
    return !l->status;
}

/* A matrix or a table has been loaded. */
static void tell_progress(Loader *l, uint64_t bytes) {
    LoadProgress *p = l->progress;
    if (l->status || !p->tell) return;
    p->done += bytes;
    if (!p->tell(p->user, p->done < p->total ? p->done : p->total, p->total))
        l->status = bee_fail(l->error, BEE_ERROR_CANCELLED, "loading was cancelled");
}

Weight *load_matrix_rows(Loader *l, const char *name, const Tensor *tensor, const int32_t *row_ids, int n_rows) {
    if (l->status) return NULL;
    const uint64_t bytes = l->device->matrix_bytes(tensor->type, n_rows, (int)tensor->columns);
    l->weight_bytes += bytes;
    if (!l->backend) return NULL;
    Weight *weight = l->ops->weight_new(l->backend, tensor, row_ids, n_rows);
    if (!weight) fail_memory(l, name);
    if (!l->made_up) gguf_release(tensor); /* packed now: the file's copy need not take memory, too */
    tell_progress(l, bytes);
    return weight;
}

Weight *load_matrix(Loader *l, const char *name, int64_t rows, int64_t columns) {
    Tensor tensor;
    return find_tensor(l, name, rows, columns, &tensor) ? load_matrix_rows(l, name, &tensor, NULL, (int)tensor.rows)
                                                        : NULL;
}

float *load_vector(Loader *l, const char *name, int64_t columns) {
    Tensor tensor;
    if (!find_tensor(l, name, 1, columns, &tensor)) return NULL;
    l->weight_bytes += padded(columns) * sizeof(float);
    if (!l->backend) return NULL;
    float *values = malloc(padded(columns) * sizeof *values);
    float *vector = values ? l->ops->buffer_new(l->backend, padded(columns)) : NULL;
    if (vector) {
        dequantize_row(&tensor, 0, values);
        l->ops->buffer_write(l->backend, vector, values, (size_t)columns * sizeof *values);
    } else {
        fail_memory(l, name);
    }
    free(values);
    return vector;
}

/* The CPU leaves it in the file: a pass reads a few of its rows. */
static void load_table(Loader *l, Model *m) {
    if (l->status) return;
    if (l->device->own_memory) l->weight_bytes += m->embedding.size;
    if (!l->backend) return;
    m->table = l->ops->table_new(l->backend, &m->embedding);
    m->owns_table = true;
    if (!m->table) fail_memory(l, "token_embd.weight");
    if (l->device->own_memory) tell_progress(l, m->embedding.size);
}

void load_embedding(Loader *l, Model *m) {
    if (!find_tensor(l, "token_embd.weight", -1, m->shape.n_embd, &m->embedding)) return;
    if (m->shape.n_vocab && m->shape.architecture->is_drafter && m->embedding.rows != m->shape.n_vocab)
        l->status = bee_fail(l->error, BEE_ERROR_FORMAT, "tensor 'token_embd.weight': %" PRId64 " rows for %d tokens",
                             m->embedding.rows, m->shape.n_vocab);
    m->shape.n_vocab = (int)m->embedding.rows;
    load_table(l, m);
}
