#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "architectures/architecture.h"
#include "calibrate.h"
#include "error.h"
#include "model/drafter.h"
#include "model/load.h"
#include "model/memory_plan.h"

static bee_status check_params(const bee_engine_params *params, const char *drafter_path, bee_error *error) {
    if (params->n_taps < 0 || params->n_taps > BEE_MAX_TAPS)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "n_taps is %d; it must lie between 0 and %d", params->n_taps,
                        BEE_MAX_TAPS);
    if (params->n_taps && drafter_path)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "taps are the drafter's own where there is one: give either");
    return kv_type_check(params->kv_type, error);
}

static bee_status open_target(bee_engine *e, const char *path, const bee_engine_params *params,
                              const LoadOptions *options, bee_error *error) {
    bee_error local;
    if (!error) error = &local;
    if (!(e->file = bee_file_open(path, error))) return error->status;
    Shape shape;
    const bee_status status = shape_read(e->file, &shape, error);
    if (status) return status;
    shape_free(&shape); /* the numbers stay */
    const char *kind = drafter_kind(e->file, &shape);
    if (kind)
        return bee_fail(error, BEE_ERROR_UNSUPPORTED,
                        "'%s' is %s, not a model: give it as the drafter of the model it was trained for", path, kind);
    for (int i = 0; i < params->n_taps; i++)
        if (params->taps[i] < 0 || params->taps[i] > shape.n_layer)
            return bee_fail(error, BEE_ERROR_ARGUMENT,
                            "taps[%d] is %d; it must lie between 0 and %d, the model's layers", i, params->taps[i],
                            shape.n_layer);
    e->target = model_load(e->device, e->ops, e->backend, e->file, NULL, NULL, options, error);
    if (!e->target) return error->status;
    e->n_taps = params->n_taps;
    memcpy(e->taps, params->taps, sizeof e->taps);
    return BEE_OK;
}

static bee_status open_drafter(bee_engine *e, const char *path, const LoadOptions *options, bee_error *error) {
    bee_error local;
    if (!error) error = &local;
    if (!(e->drafter_file = bee_file_open(path, error))) return error->status;
    Shape shape;
    const bee_status status = shape_read(e->drafter_file, &shape, error);
    if (status) return status;
    shape_free(&shape);
    if (!drafter_kind(e->drafter_file, &shape))
        return bee_fail(
            error, BEE_ERROR_MISMATCH,
            "'%s' is not a DFlash drafter (its architecture is not 'dflash'), nor a model's block alone that "
            "predicts further tokens (MTP)",
            path);
    e->drafter = model_load(e->device, e->ops, e->backend, e->drafter_file, e->target, e->file, options, error);
    if (!e->drafter) return error->status;
    e->predicts = e->drafter->embedding_norm;
    e->n_taps = e->drafter->shape.n_taps;
    memcpy(e->taps, e->drafter->shape.taps, sizeof e->taps);
    return BEE_OK;
}

/* The block that came with the model, where no drafter did. */
static bee_status open_predictor(bee_engine *e, const LoadOptions *options, bee_error *error) {
    bee_error local;
    if (!error) error = &local;
    if (!model_predicts(e->file, &e->target->shape) || e->n_taps) return BEE_OK;
    e->drafter = model_load(e->device, e->ops, e->backend, e->file, e->target, e->file, options, error);
    if (!e->drafter) return error->status;
    e->predicts = true;
    e->n_taps = 1;
    e->taps[0] = e->drafter->shape.taps[0];
    return BEE_OK;
}

static bee_status find_device(bee_engine *e, bee_error *error) {
    bee_error local;
    if (!error) error = &local;
    return e->device->describe(&e->device_info, error) || !(e->ops = e->device->ops(error)) ? error->status : BEE_OK;
}

/* What the driver takes is then there: whether all else fits is certain, where before it was likely. */
static bee_status open_backend(bee_engine *e, const bee_engine_params *params, const bee_memory_plan *plan,
                               bee_error *error) {
    bee_error local;
    bee_device_info now;
    if (!error) error = &local;
    e->backend = e->device->backend_new(params->n_threads, params->instruction_set, error);
    if (!e->backend) return error->status;
    const bee_status status = e->device->describe(&now, error);
    if (status || !e->device->own_memory) return status;
    const uint64_t there =
        e->device->driver_bytes - e->device->driver_bytes_to_come + e->device->bytes_taken(e->backend);
    return plan_check(plan, there, &now, params->n_ctx, error);
}

static bee_status plan(const bee_engine *e, const char *model_path, const char *drafter_path, int32_t n_ctx,
                       bee_kv_type kv_type, bee_memory_plan *out, bee_error *error) {
    bee_error local;
    if (!error) error = &local;
    bee_file *target = bee_file_open(model_path, error);
    bee_file *drafter = target && drafter_path ? bee_file_open(drafter_path, error) : NULL;
    bee_status status = error->status;
    if (target && (drafter || !drafter_path))
        status = bee_plan_memory(target, drafter, e->device->kind, n_ctx, kv_type, out, error);
    bee_file_close(drafter);
    bee_file_close(target);
    return status;
}

/* Before a device is opened, which would take memory until the process ends: what cannot fit its own is refused with
 * the numbers. Otherwise a plan is made where progress has to know its total; files that have none are refused when
 * they are opened, with the reason. */
static bee_status make_plan(const bee_engine *e, const char *model_path, const char *drafter_path,
                            const bee_engine_params *params, bee_memory_plan *out, bee_error *error) {
    *out = (bee_memory_plan){0};
    if (e->device->own_memory) {
        const bee_status status = plan(e, model_path, drafter_path, params->n_ctx, params->kv_type, out, error);
        return status ? status : plan_check(out, e->device->driver_bytes, &e->device_info, params->n_ctx, error);
    }
    if (params->progress) plan(e, model_path, drafter_path, 0, params->kv_type, out, NULL);
    return BEE_OK;
}

/* What is of use in them lies in the models. */
static void close_files(bee_engine *e) {
    bee_file_close(e->drafter_file);
    bee_file_close(e->file);
    e->drafter_file = e->file = NULL;
}

static bee_status load_models(bee_engine *e, const char *model_path, const char *drafter_path,
                              const bee_engine_params *params, uint64_t weight_bytes, bee_error *error) {
    LoadProgress progress = {
        .tell = weight_bytes ? params->progress : NULL, .user = params->progress_user, .total = weight_bytes};
    e->packed =
        (PackedCache){.directory = params->packed_cache, .model_path = model_path, .drafter_path = drafter_path};
    const LoadOptions options = {params->kv_type, params->made_up_weights, &progress, &e->packed};
    bee_status status = open_target(e, model_path, params, &options, error);
    if (!status && drafter_path) status = open_drafter(e, drafter_path, &options, error);
    if (!status && !drafter_path) status = open_predictor(e, &options, error);
    if (!status && progress.tell && !progress.tell(progress.user, progress.total, progress.total))
        status = bee_fail(error, BEE_ERROR_CANCELLED, "loading was cancelled");
    close_files(e);
    /* The caller's, who may free them. */
    e->packed.directory = e->packed.model_path = e->packed.drafter_path = NULL;
    return status;
}

static bee_status open_parts(bee_engine *e, const char *model_path, const char *drafter_path,
                             const bee_engine_params *params, bee_error *error) {
    bee_memory_plan needed;
    bee_status status = check_params(params, drafter_path, error);
    if (!status) status = find_device(e, error);
    if (!status) status = make_plan(e, model_path, drafter_path, params, &needed, error);
    if (!status) status = open_backend(e, params, &needed, error);
    if (!status)
        status = load_models(e, model_path, drafter_path, params, needed.target_bytes + needed.drafter_bytes, error);
    if (status) return status;
    if (!workspace_new(e->ops, e->backend, e->target, e->n_taps, &e->work) ||
        (e->drafter && !workspace_new(e->ops, e->backend, e->drafter, e->n_taps, &e->draft_work)))
        return fail_to_make(e->ops, e->backend, error, "out of memory for the activations of a pass");
    /* The host's part of a cycle is some 0.1 ms, its caller's with it: estimated, not measured. */
    e->short_cycle = 2e-3;
    status = calibrate(e, params->costs, error);
    return status ? status : engine_status(e, error);
}

static void log_opened(const bee_engine *e) {
    if (!e->log) return;
    char message[320];
    snprintf(message, sizeof message, "%d layers, %.1f MB of packed weights, %s kernels on %s, %d threads, %s",
             e->target->shape.n_layer, 1e-6 * (double)e->target->weight_bytes, e->device->instruction_set(e->backend),
             e->device_info.name, e->device->n_threads(e->backend),
             e->predicts  ? "predicting"
             : e->drafter ? "with a drafter"
                          : "no drafter");
    e->log(e->log_user, message);
    if (*e->packed.note) e->log(e->log_user, e->packed.note);
}

/* `note` is what the engine says of the device that it was not opened on; may be NULL. */
static bee_engine *open_on(const Device *device, const char *model_path, const char *drafter_path,
                           const bee_engine_params *params, const char *note, bee_error *error) {
    bee_engine *e = calloc(1, sizeof *e);
    if (!e) {
        bee_fail(error, BEE_ERROR_MEMORY, "out of memory");
        return NULL;
    }
    pthread_mutex_init(&e->mutex, NULL);
    e->device = device;
    e->unshared = params->unshared;
    e->log = params->log;
    e->log_user = params->log_user;
    e->kv_type = params->kv_type;
    if (note) snprintf(e->device_note, sizeof e->device_note, "%.255s", note);
    if (!open_parts(e, model_path, drafter_path, params, error)) {
        log_opened(e);
        return e;
    }
    bee_engine_close(e);
    return NULL;
}

/* The card where it takes the model, and otherwise the CPU. Where there is no card, nothing is said of it. What is
 * wrong with the files, opening them on the CPU says. */
static bee_engine *open_auto(const char *model_path, const char *drafter_path, const bee_engine_params *params,
                             bee_error *error) {
    const Device *card = device_of(BEE_DEVICE_CUDA);
    bee_device_info info;
    bee_error reason = {.message = ""};
    if (!params->instruction_set && !card->describe(&info, NULL)) {
        bee_engine *e = open_on(card, model_path, drafter_path, params, NULL, &reason);
        if (e) return e;
        if (reason.status == BEE_ERROR_CANCELLED) {
            bee_fail(error, reason.status, "%s", reason.message);
            return NULL;
        }
    }
    return open_on(device_of(BEE_DEVICE_CPU), model_path, drafter_path, params, reason.message, error);
}

bee_engine *bee_engine_open(const char *model_path, const char *drafter_path, const bee_engine_params *params,
                            bee_error *error) {
    static const bee_engine_params defaults = {0};
    if (!model_path) {
        bee_fail(error, BEE_ERROR_ARGUMENT, "model_path is missing");
        return NULL;
    }
    if (!params) params = &defaults;
    if (params->device == BEE_DEVICE_AUTO) return open_auto(model_path, drafter_path, params, error);
    const Device *device = device_of(params->device);
    if (!device) {
        bee_fail(error, BEE_ERROR_ARGUMENT, "device is %d; bee_device has 0 to 2", (int)params->device);
        return NULL;
    }
    return open_on(device, model_path, drafter_path, params, NULL, error);
}

void bee_engine_close(bee_engine *e) {
    if (!e) return;
    if (e->backend) {
        workspace_free(e->ops, e->backend, &e->work);
        workspace_free(e->ops, e->backend, &e->draft_work);
        model_free(e->ops, e->backend, e->drafter);
        model_free(e->ops, e->backend, e->target);
        e->device->backend_free(e->backend);
    }
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
        .n_threads = e->device->n_threads(e->backend),
        .n_taps = e->n_taps,
        .has_drafter = e->drafter && !e->predicts,
        .predicts = e->predicts,
        .block_size = e->drafter ? e->drafter->shape.block_size : 0,
        .n_draft_vocab = e->drafter ? e->drafter->n_head_rows : 0,
        .mask_token = e->drafter ? e->drafter->shape.mask_token : -1,
        .weight_bytes = e->target->weight_bytes + (e->drafter ? e->drafter->weight_bytes : 0),
        .kv_type = e->kv_type,
        .mapped_bytes = e->packed.mapped_bytes,
        .packed_failed = e->packed.failed,
        .instruction_set = e->device->instruction_set(e->backend),
        .device = e->device->kind,
        .device_info = e->device_info,
    };
    const char *note = *e->device_note ? e->device_note : e->device->note(e->backend);
    snprintf(out->device_note, sizeof out->device_note, "%s", note);
    memcpy(out->packed_note, e->packed.note, sizeof out->packed_note);
    memcpy(out->taps, e->taps, sizeof e->taps);
}
