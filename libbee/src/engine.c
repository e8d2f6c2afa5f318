#define _GNU_SOURCE
#include "engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "error.h"

double monotonic_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

const char *bee_version(void) { return BEE_VERSION; }

const char *const *bee_instruction_sets(void) { return cpu_instruction_sets(); }

static bee_status check_params(const bee_engine_params *params, const char *drafter_path, bee_error *error) {
    if (params->n_taps < 0 || params->n_taps > BEE_MAX_TAPS)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "n_taps is %d; it must lie between 0 and %d", params->n_taps,
                        BEE_MAX_TAPS);
    if (params->n_taps && drafter_path)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "taps are the drafter's own where there is one: give either");
    return BEE_OK;
}

static bee_status open_target(bee_engine *e, const char *path, const bee_engine_params *params, bee_error *error) {
    bee_error local;
    if (!error) error = &local;
    if (!(e->file = bee_file_open(path, error))) return error->status;
    Shape shape;
    const bee_status status = shape_read(e->file, &shape, error);
    if (status) return status;
    if (shape.architecture == ARCH_DFLASH)
        return bee_fail(error, BEE_ERROR_UNSUPPORTED,
                        "'%s' is a DFlash drafter, not a model: give it as the drafter of the model it was trained for",
                        path);
    for (int i = 0; i < params->n_taps; i++)
        if (params->taps[i] < 0 || params->taps[i] > shape.n_layer)
            return bee_fail(error, BEE_ERROR_ARGUMENT,
                            "taps[%d] is %d; it must lie between 0 and %d, the model's layers", i, params->taps[i],
                            shape.n_layer);
    if (!(e->target = model_load(e->ops, e->backend, e->file, NULL, NULL, error))) return error->status;
    e->n_taps = params->n_taps;
    memcpy(e->taps, params->taps, sizeof e->taps);
    return BEE_OK;
}

static bee_status open_drafter(bee_engine *e, const char *path, bee_error *error) {
    bee_error local;
    if (!error) error = &local;
    if (!(e->drafter_file = bee_file_open(path, error))) return error->status;
    Shape shape;
    const bee_status status = shape_read(e->drafter_file, &shape, error);
    if (status) return status;
    if (shape.architecture != ARCH_DFLASH)
        return bee_fail(error, BEE_ERROR_MISMATCH, "'%s' is not a DFlash drafter (its architecture is not 'dflash')",
                        path);
    if (!(e->drafter = model_load(e->ops, e->backend, e->drafter_file, e->target, e->file, error)))
        return error->status;
    e->n_taps = e->drafter->shape.n_taps;
    memcpy(e->taps, e->drafter->shape.taps, sizeof e->taps);
    return BEE_OK;
}

static bee_status open_parts(bee_engine *e, const char *model_path, const char *drafter_path,
                             const bee_engine_params *params, bee_error *error) {
    bee_status status = check_params(params, drafter_path, error);
    if (status) return status;
    e->backend = cpu_backend_new(params->n_threads, params->instruction_set, error);
    if (!e->backend) return error ? error->status : BEE_ERROR_ARGUMENT;
    status = open_target(e, model_path, params, error);
    if (!status && drafter_path) status = open_drafter(e, drafter_path, error);
    if (status) return status;
    if (!workspace_new(e->ops, e->backend, e->target, e->n_taps, &e->work) ||
        (e->drafter && !workspace_new(e->ops, e->backend, e->drafter, e->n_taps, &e->draft_work)))
        return bee_fail(error, BEE_ERROR_MEMORY, "out of memory for the activations of a pass");
    chances_reset(&e->usual);
    return open_costs(e, params->costs, error);
}

static void log_opened(const bee_engine *e) {
    if (!e->log) return;
    char message[160];
    snprintf(message, sizeof message, "%d layers, %.1f MB of packed weights, %s kernels on %d threads, %s",
             e->target->shape.n_layer, 1e-6 * (double)e->target->weight_bytes, cpu_backend_instruction_set(e->backend),
             cpu_backend_threads(e->backend), e->drafter ? "with a drafter" : "no drafter");
    e->log(e->log_user, message);
}

bee_engine *bee_engine_open(const char *model_path, const char *drafter_path, const bee_engine_params *params,
                            bee_error *error) {
    static const bee_engine_params defaults = {0};
    if (!model_path) {
        bee_fail(error, BEE_ERROR_ARGUMENT, "model_path is missing");
        return NULL;
    }
    bee_engine *e = calloc(1, sizeof *e);
    if (!e) {
        bee_fail(error, BEE_ERROR_MEMORY, "out of memory");
        return NULL;
    }
    pthread_mutex_init(&e->mutex, NULL);
    e->ops = &bee_cpu_ops;
    e->log = params ? params->log : NULL;
    e->log_user = params ? params->log_user : NULL;
    if (!open_parts(e, model_path, drafter_path, params ? params : &defaults, error)) {
        log_opened(e);
        return e;
    }
    bee_engine_close(e);
    return NULL;
}

void bee_engine_close(bee_engine *e) {
    if (!e) return;
    workspace_free(e->ops, e->backend, &e->work);
    workspace_free(e->ops, e->backend, &e->draft_work);
    model_free(e->ops, e->backend, e->drafter);
    model_free(e->ops, e->backend, e->target);
    cpu_backend_free(e->backend);
    bee_file_close(e->drafter_file);
    bee_file_close(e->file);
    pthread_mutex_destroy(&e->mutex);
    free(e);
}

void bee_engine_describe(const bee_engine *e, bee_engine_info *out) {
    const Shape *s = &e->target->shape;
    *out = (bee_engine_info){
        .n_vocab = s->n_vocab,
        .n_ctx_train = s->n_ctx_train,
        .n_layer = s->n_layer,
        .n_embd = s->n_embd,
        .n_threads = cpu_backend_threads(e->backend),
        .n_taps = e->n_taps,
        .has_drafter = e->drafter != NULL,
        .block_size = e->drafter ? e->drafter->shape.block_size : 0,
        .n_draft_vocab = e->drafter ? e->drafter->n_head_rows : 0,
        .mask_token = e->drafter ? e->drafter->shape.mask_token : -1,
        .weight_bytes = e->target->weight_bytes + (e->drafter ? e->drafter->weight_bytes : 0),
        .instruction_set = cpu_backend_instruction_set(e->backend),
    };
    memcpy(out->taps, e->taps, sizeof e->taps);
}
