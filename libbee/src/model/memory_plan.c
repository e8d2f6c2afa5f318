#include "memory_plan.h"

#include "cuda/work_sizes.h"
#include "error.h"
#include "forward/forward.h"

enum { OPERAND_PARTS = 7 };

/* Kernels, their local memory and the driver's own: seen to be 300 to 500 MB. */
static const uint64_t DRIVER_BYTES = 512ull << 20;

/* Products split over their columns: at most 511 blocks of 64 rows, for each of those that run together. */
static const uint64_t PARTIAL_BYTES = 3ull * 511 * 64 * BEE_MAX_PASS_ROWS * sizeof(float) + (1 << 20);

/* In every form: which ones a model's matrices read is known when they are loaded. */
static uint64_t operand_bytes(int columns) {
    const OperandSizes s = operand_sizes(columns, BEE_MAX_PASS_ROWS);
    return s.codes + s.scales + 2 * (s.halves + s.factors) + s.values + OPERAND_PARTS * 256;
}

static uint64_t rows_of_floats(int64_t columns) {
    return device_bytes(BEE_MAX_PASS_ROWS * padded(columns) * sizeof(float));
}

/* What workspace_new takes, and the buffers that grow with the model. */
static uint64_t workspace_bytes(const Model *m, int n_features) {
    const Shape *s = &m->shape;
    const int query = s->n_head * s->head_size, key = s->n_head_kv * s->head_size;
    return rows_of_floats(s->n_embd) + rows_of_floats(query) + 2 * rows_of_floats(key) + rows_of_floats(s->n_rotated) +
           2 * rows_of_floats(n_features) + rows_of_floats(m->n_head_rows) + operand_bytes(s->n_embd) +
           operand_bytes(query) + operand_bytes(s->n_ff) + operand_bytes(n_features ? n_features : 1);
}

static uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

static uint64_t partial_results(const Model *m, int n_ctx) {
    return attention_bytes(m->shape.n_head, m->shape.head_size, n_ctx);
}

/* What all models of an engine share. The larger head's rows are kept where log-probabilities are asked for. */
static uint64_t shared_bytes(const Model *target, const Model *drafter, int n_ctx) {
    const int head = drafter && drafter->n_head_rows > target->n_head_rows ? drafter->n_head_rows : target->n_head_rows;
    const int ff = drafter && drafter->shape.n_ff > target->shape.n_ff ? drafter->shape.n_ff : target->shape.n_ff;
    uint64_t bytes = DRIVER_BYTES + PARTIAL_BYTES + 2 * STAGING_BYTES + (4 << 20);
    bytes += rows_of_floats(head) + gate_bytes(head > ff ? head : ff);
    return bytes +
           larger(partial_results(target, n_ctx), drafter ? partial_results(drafter, n_ctx + BEE_MAX_BLOCK) : 0);
}

static uint64_t model_cache_bytes(const Model *m, int n_ctx) {
    const Shape *s = &m->shape;
    const uint64_t positions = (uint64_t)(n_ctx + CACHE_CHUNK - 1) / CACHE_CHUNK * CACHE_CHUNK;
    return positions * (uint64_t)s->n_layer * (uint64_t)s->n_head_kv * (uint64_t)s->head_size * 2 * sizeof(uint16_t);
}

static void add_up(const Model *target, const Model *drafter, bool on_device, int n_ctx, bee_memory_plan *out) {
    const int n_features = drafter ? drafter->shape.n_taps * target->shape.n_embd : 0;
    *out = (bee_memory_plan){.target_bytes = target->weight_bytes, .cache_bytes = model_cache_bytes(target, n_ctx)};
    if (drafter) {
        out->drafter_bytes = drafter->weight_bytes;
        out->cache_bytes += model_cache_bytes(drafter, n_ctx + BEE_MAX_BLOCK);
    }
    out->work_bytes = workspace_bytes(target, n_features) + (drafter ? workspace_bytes(drafter, n_features) : 0);
    if (on_device) out->work_bytes += shared_bytes(target, drafter, n_ctx);
    out->total_bytes = out->target_bytes + out->drafter_bytes + out->cache_bytes + out->work_bytes;
}

bee_status bee_plan_memory(const bee_file *target_file, const bee_file *drafter_file, bee_device device, int32_t n_ctx,
                           bee_memory_plan *out, bee_error *error) {
    Model target, drafter;
    if (device != BEE_DEVICE_CPU && device != BEE_DEVICE_CUDA)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "device is %d; a plan is for the CPU or CUDA", (int)device);
    const bool on_device = device == BEE_DEVICE_CUDA;
    bee_status status = model_plan(target_file, on_device, NULL, NULL, &target, error);
    if (!status && target.shape.architecture == ARCH_DFLASH)
        status = bee_fail(error, BEE_ERROR_UNSUPPORTED, "the plan's target is a DFlash drafter, not a model");
    if (!status && drafter_file) {
        status = model_plan(drafter_file, on_device, &target, target_file, &drafter, error);
        if (!status && drafter.shape.architecture != ARCH_DFLASH)
            status = bee_fail(error, BEE_ERROR_MISMATCH, "the plan's drafter is not a DFlash drafter");
    }
    if (status) return status;
    if (n_ctx < 0 || n_ctx > target.shape.n_ctx_train)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "n_ctx is %d; it must lie between 0 and the model's %d", n_ctx,
                        target.shape.n_ctx_train);
    add_up(&target, drafter_file ? &drafter : NULL, on_device, n_ctx ? n_ctx : target.shape.n_ctx_train, out);
    return BEE_OK;
}

bee_status plan_check(const bee_memory_plan *plan, const bee_device_info *device, int32_t n_ctx, bee_error *error) {
    if (plan->total_bytes <= device->free_bytes) return BEE_OK;
    const double GB = 1e-9;
    return bee_fail(
        error, BEE_ERROR_MEMORY,
        "it needs %.2f GB and %s has %.2f of %.2f GB free: target %.2f, drafter %.2f, keys and values of %d "
        "positions %.2f, work space %.2f GB; take a smaller context (n_ctx), a smaller quantisation, or no "
        "drafter",
        GB * (double)plan->total_bytes, device->name, GB * (double)device->free_bytes, GB * (double)device->total_bytes,
        GB * (double)plan->target_bytes, GB * (double)plan->drafter_bytes, n_ctx, GB * (double)plan->cache_bytes,
        GB * (double)plan->work_bytes);
}
