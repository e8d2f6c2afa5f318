#include "memory_plan.h"

#include "architectures/architecture.h"
#include "devices.h"
#include "drafter.h"
#include "error.h"
#include "forward/forward.h"
#include "load.h"

static uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

static uint64_t rows_of_floats(const Device *device, int64_t columns) {
    return device->buffer_bytes(BEE_MAX_PASS_ROWS * padded(columns) * sizeof(float));
}

/* Of experts, as workspace_new takes it. Operands are told in every form, for BEE_MAX_PASS_ROWS rows. */
static uint64_t expert_bytes(const Device *device, const Shape *s) {
    const int n_experts = shape_widest(s, n_experts_of), n_used = shape_widest(s, n_used_of), n = BEE_MAX_PASS_ROWS;
    const uint64_t rows = (uint64_t)expert_rows(n, n_experts, n_used), ids = (uint64_t)(n * n_used) * sizeof(int32_t);
    if (!n_experts) return 0;
    return rows_of_floats(device, n_experts) + rows_of_floats(device, 1) + 2 * device->buffer_bytes(ids) +
           device->buffer_bytes(expert_places(n, n_experts, n_used) * sizeof(int32_t)) +
           device->buffer_bytes(rows * padded(s->n_embd) * sizeof(float)) +
           (rows + n - 1) / n *
               (device->operand_bytes(s->n_embd) + device->operand_bytes(shape_widest(s, expert_columns)));
}

/* What workspace_new takes, and the buffers that grow with the model. */
static uint64_t workspace_bytes(const Device *device, const Model *m, int n_features) {
    const Shape *s = &m->shape;
    const int query = shape_widest(s, query_columns), key = shape_widest(s, key_columns);
    const int token = s->n_token * s->n_layer;
    const CacheShape cache = shape_cache(s);
    const int inputs = cache.n_states ? shape_widest(s, input_columns) : 0;
    const int results = cache.n_states ? shape_widest(s, result_columns) : 0;
    const int values = shape_widest(s, value_columns), low = shape_widest(s, query_rank_of);
    const int rows[] = {low,
                        shape_widest(s, whole_query_columns) + (values ? 1 : 0),
                        values,
                        s->n_embd,
                        s->n_embd,
                        query,
                        key,
                        key,
                        n_features,
                        n_features,
                        m->n_head_rows,
                        token,
                        token,
                        inputs,
                        results,
                        results,
                        shape_widest(s, gate_columns)};
    const int operands[] = {low,
                            values,
                            values ? shape_widest(s, unrotated_columns) : 0,
                            values ? key : 0,
                            s->n_embd,
                            query,
                            shape_widest(s, ff_columns),
                            n_features ? n_features : 1,
                            s->n_token ? s->n_token : 1,
                            results};
    uint64_t bytes = expert_bytes(device, s);
    for (int i = 0; i < s->n_ropes; i++) bytes += rows_of_floats(device, s->ropes[i].n_rotated);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) bytes += rows_of_floats(device, rows[i]);
    for (size_t i = 0; i < sizeof operands / sizeof *operands; i++) bytes += device->operand_bytes(operands[i]);
    return bytes;
}

/* Of a block that comes with its target: what it reads, and what it goes on from. */
static uint64_t pair_bytes(const Device *device, const Shape *s) {
    if (!s->first_block) return 0;
    return device->operand_bytes(2 * s->n_embd) + rows_of_floats(device, 2 * (int64_t)s->n_embd) +
           rows_of_floats(device, s->n_embd);
}

/* What all models of an engine share. */
static uint64_t shared_bytes(const Device *device, const Model *const *models, int n_models, const int *n_ctx) {
    int head = 0, ff = 0, n_layers = 0;
    uint64_t attention = 0;
    for (int i = 0; i < n_models; i++) {
        const CacheShape cache = shape_cache(&models[i]->shape);
        const int widest = shape_widest(&models[i]->shape, ff_columns);
        if (models[i]->n_head_rows > head) head = models[i]->n_head_rows;
        if (widest > ff) ff = widest;
        n_layers += models[i]->shape.n_layer;
        attention = larger(attention, device->attention_bytes(&cache, n_ctx[i]));
    }
    return device->driver_bytes + device->shared_bytes(head, ff, n_layers) + attention;
}

static uint64_t model_cache_bytes(const Device *device, const Model *m, int n_ctx) {
    const CacheShape shape = shape_cache(&m->shape);
    const Cache cache = cache_layout(&shape, n_ctx);
    uint64_t bytes = 0;
    for (int r = 0; r < CACHE_REGIONS; r++)
        if (cache_half_bytes(&cache, r)) bytes += 2 * device->buffer_bytes(cache_half_bytes(&cache, r));
    if (!shape.n_states) return bytes;
    const uint64_t states = shape.state_floats * sizeof(float);
    return bytes + device->buffer_bytes(states) + device->buffer_bytes(states * (uint64_t)cache_snapshots(&shape)) +
           device->buffer_bytes(shape.kept_floats * sizeof(float));
}

static void add_up(const Device *device, const Model *target, const Model *drafter, int n_ctx, bee_memory_plan *out) {
    const Model *const models[] = {target, drafter};
    const int n_models = drafter ? 2 : 1, contexts[] = {n_ctx, n_ctx + BEE_MAX_BLOCK};
    const int n_features = drafter ? drafter->shape.n_taps * target->shape.n_embd : 0;
    *out = (bee_memory_plan){.target_bytes = target->weight_bytes,
                             .drafter_bytes = drafter ? drafter->weight_bytes : 0,
                             .work_bytes = shared_bytes(device, models, n_models, contexts)};
    for (int i = 0; i < n_models; i++) {
        out->cache_bytes += model_cache_bytes(device, models[i], contexts[i]);
        out->work_bytes += workspace_bytes(device, models[i], n_features) + pair_bytes(device, &models[i]->shape);
    }
    out->total_bytes = out->target_bytes + out->drafter_bytes + out->cache_bytes + out->work_bytes;
}

bee_status bee_plan_memory(const bee_file *target_file, const bee_file *drafter_file, bee_device kind, int32_t n_ctx,
                           bee_kv_type kv_type, bee_memory_plan *out, bee_error *error) {
    Model target = {0}, drafter = {0};
    const Device *device = device_of(kind);
    if (!device) return bee_fail(error, BEE_ERROR_ARGUMENT, "device is %d; a plan is for the CPU or CUDA", (int)kind);
    bee_status status = model_plan(target_file, device, NULL, NULL, kv_type, &target, error);
    if (!status && drafter_kind(target_file, &target.shape))
        status = bee_fail(error, BEE_ERROR_UNSUPPORTED, "the plan's target is %s, not a model",
                          drafter_kind(target_file, &target.shape));
    if (!status && drafter_file == target_file)
        status = bee_fail(error, BEE_ERROR_MISMATCH, "the plan's drafter is its target: leave out the drafter");
    if (!status && drafter_file) {
        status = model_plan(drafter_file, device, &target, target_file, kv_type, &drafter, error);
        if (!status && !drafter_kind(drafter_file, &drafter.shape))
            status = bee_fail(error, BEE_ERROR_MISMATCH, "the plan's drafter is a model, not a drafter");
    }
    const bool predicts = !status && !drafter_file && model_predicts(target_file, &target.shape);
    if (predicts) status = model_plan(target_file, device, &target, target_file, kv_type, &drafter, error);
    if (!status && (n_ctx < 0 || n_ctx > target.shape.n_ctx_train))
        status = bee_fail(error, BEE_ERROR_ARGUMENT, "n_ctx is %d; it must lie between 0 and the model's %d", n_ctx,
                          target.shape.n_ctx_train);
    if (!status)
        add_up(device, &target, drafter_file || predicts ? &drafter : NULL, n_ctx ? n_ctx : target.shape.n_ctx_train,
               out);
    shape_free(&target.shape);
    shape_free(&drafter.shape);
    return status;
}

bee_status plan_check(const bee_memory_plan *plan, uint64_t there, const bee_device_info *device, int32_t n_ctx,
                      bee_error *error) {
    if (plan->total_bytes - there <= device->free_bytes) return BEE_OK;
    const double GB = 1e-9;
    return bee_fail(
        error, BEE_ERROR_MEMORY,
        "it needs %.2f GB and %s has %.2f of %.2f GB free: target %.2f, drafter %.2f, keys and values of %d "
        "positions %.2f, work space %.2f GB; take a smaller context (n_ctx), keys and values in 8 bits (kv_cache), a "
        "smaller quantisation, or no "
        "drafter",
        GB * (double)(plan->total_bytes - there), device->name, GB * (double)device->free_bytes,
        GB * (double)device->total_bytes, GB * (double)plan->target_bytes, GB * (double)plan->drafter_bytes, n_ctx,
        GB * (double)plan->cache_bytes, GB * (double)(plan->work_bytes - there));
}
