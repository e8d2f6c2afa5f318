#define _GNU_SOURCE
#include "packed_weights.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "error.h"
#include "file/checksum.h"

struct PackedModel {
    PackedCache *cache;
    PackedFile *file; /* NULL: there is none, or it was refused */
    PackedKey key;
    char *path;
    uint64_t what; /* of the weight that was looked for last */
    PackedWeight *weights;
    uint64_t n, capacity;
    bool differs;      /* the file has other weights than the model asks for */
    bool forgot;       /* no memory to note them all */
    char refused[192]; /* why there is a new file in place of an old one; empty: there was none */
};

/* ---- which file it is ----------------------------------------------------------------------------- */

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* "<directory>/<name of the model's file>-<hash of its place, and of what it is for>.packed". A changed model's file
 * takes the place of the old one's. NULL: no memory, or the model is not there. */
static char *path_in(const char *directory, const char *of_model, const char *of_target, uint64_t form) {
    enum { LONGEST_NAME = 96 };
    char *model = realpath(of_model, NULL), *target = of_target ? realpath(of_target, NULL) : NULL, *path = NULL;
    if (model && (target || !of_target)) {
        uint64_t hash = checksum(model, strlen(model), form);
        if (target) hash = checksum(target, strlen(target), hash);
        char name[LONGEST_NAME + 1] = "";
        const size_t length = strlen(base_name(model));
        for (size_t i = 0; i < length && i < LONGEST_NAME; i++) {
            const char c = base_name(model)[i];
            const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
            name[i] = c;
            if (!plain && !strchr("._-", c)) name[i] = '_';
        }
        const size_t room = strlen(directory) + LONGEST_NAME + 32;
        if ((path = malloc(room)))
            snprintf(path, room, "%s/%s-%016llx.packed", directory, name, (unsigned long long)hash);
    }
    free(model);
    free(target);
    return path;
}

/* The model itself; its own block; a drafter, for this target. */
static char *path_of(const PackedCache *cache, const bee_file *file, const bee_file *target_file, uint64_t form) {
    if (!target_file) return path_in(cache->directory, cache->model_path, NULL, form);
    return path_in(cache->directory, file == target_file ? cache->model_path : cache->drafter_path, cache->model_path,
                   form);
}

/* ---- what is told of it --------------------------------------------------------------------------- */

static void tell(PackedModel *m, const char *what, const char *why) {
    char *note = m->cache->note;
    const size_t used = strlen(note), room = sizeof m->cache->note - used;
    snprintf(note + used, room, "%s%s: %s%s%s", used ? "; " : "", m->path ? base_name(m->path) : "packed weights", what,
             *why ? ": " : "", why);
}

/* ---- opening -------------------------------------------------------------------------------------- */

typedef struct Check {
    const PackedFile *file;
    atomic_ullong next;
    atomic_bool broken;
} Check;

static void check_pieces(Worker *worker, void *argument) {
    Check *check = argument;
    (void)worker;
    for (uint64_t piece; !check->broken && (piece = check->next++) < packed_pieces(check->file);)
        if (!packed_piece_is_whole(check->file, piece)) check->broken = true;
}

static void open_file(PackedModel *m, const Ops *ops, Backend *backend) {
    bee_error reason = {.status = BEE_OK};
    m->file = packed_open(m->path, &m->key, &reason);
    if (m->file) {
        Check check = {.file = m->file};
        ops->run(backend, check_pieces, &check, &(RunInput){0});
        if (!check.broken) return;
        packed_close(m->file);
        m->file = NULL;
        bee_fail(&reason, BEE_ERROR_FORMAT, "the checksum of its data is wrong");
    }
    if (reason.status != BEE_ERROR_ARGUMENT) /* there is none */
        snprintf(m->refused, sizeof m->refused, "%.190s", reason.message);
}

static void model_free(PackedModel *m) {
    free(m->weights);
    free(m->path);
    free(m);
}

PackedModel *packed_model_new(PackedCache *cache, const Ops *ops, Backend *backend, const bee_file *file,
                              const bee_file *target_file) {
    if (!cache->directory || !*cache->directory || !ops->packed) return NULL;
    PackedModel *m = calloc(1, sizeof *m);
    if (!m) return NULL;
    bee_error error = {.message = "no memory, or the model has moved"};
    m->cache = cache;
    m->key.form = ops->packed->form(backend);
    bee_status status = gguf_identity(file, &m->key.models[0], &error);
    if (!status && target_file) status = gguf_identity(target_file, &m->key.models[1], &error);
    if (!status) m->path = path_of(cache, file, target_file, m->key.form);
    if (m->path) {
        open_file(m, ops, backend);
        return m;
    }
    cache->failed = true;
    tell(m, "not kept", error.message);
    model_free(m);
    return NULL;
}

/* ---- weights -------------------------------------------------------------------------------------- */

/* Which rows of which tensor: the name, its place and all that says how it is packed. */
static uint64_t what_of(const Tensor *tensor, const int32_t *row_ids, int n_rows) {
    const uint64_t numbers[] = {tensor->type, (uint64_t)tensor->columns, tensor->offset, tensor->size,
                                (uint64_t)n_rows};
    uint64_t what = checksum(tensor->name, (size_t)tensor->name_length, 0);
    what = checksum(numbers, sizeof numbers, what);
    return row_ids ? checksum(row_ids, (size_t)n_rows * sizeof *row_ids, what) : what;
}

const uint8_t *packed_model_next(PackedModel *m, const Tensor *tensor, const int32_t *row_ids, int n_rows,
                                 uint64_t bytes) {
    m->what = what_of(tensor, row_ids, n_rows);
    if (!m->file || m->differs) return NULL;
    const uint8_t *data = packed_next(m->file, m->what, bytes);
    m->differs = !data;
    if (data) m->cache->mapped_bytes += bytes;
    return data;
}

void packed_model_add(PackedModel *m, const uint8_t *data, uint64_t bytes) {
    if (m->n == m->capacity) {
        const uint64_t capacity = m->capacity ? 2 * m->capacity : 256;
        PackedWeight *weights = realloc(m->weights, capacity * sizeof *weights);
        m->forgot = m->forgot || !weights;
        if (!weights) return;
        m->weights = weights;
        m->capacity = capacity;
    }
    m->weights[m->n++] = (PackedWeight){m->what, bytes, data};
}

/* ---- writing -------------------------------------------------------------------------------------- */

static void write_file(PackedModel *m) {
    bee_error error;
    mkdir(m->cache->directory, 0777); /* where that fails, so does writing */
    if (m->forgot)
        bee_fail(&error, BEE_ERROR_MEMORY, "out of memory");
    else if (packed_write(m->path, &m->key, m->weights, m->n, &error) == BEE_OK) {
        tell(m, *m->refused ? "written anew" : "written", m->refused);
        return;
    }
    m->cache->failed = true;
    tell(m, "not written", error.message);
}

PackedFile *packed_model_end(PackedModel *m, bool loaded) {
    if (!m) return NULL;
    PackedFile *file = m->file;
    if (file && (m->differs || !packed_at_end(file)))
        snprintf(m->refused, sizeof m->refused, "it had other weights than the model");
    if (loaded && (!file || *m->refused)) write_file(m);
    model_free(m);
    return file;
}
