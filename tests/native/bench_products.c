/* What products of weights and tokens take where memory does not matter, for docs/performance.md: nanoseconds for 16
 * rows of 2048 columns, in the second-level cache, on one thread, the least of many times.
 *
 *     bench_products [instruction set [type]] */
#define _GNU_SOURCE
#include <float.h>

#include "bench.h"
#include "check.h"
#include "cpu/pack.h"
#include "ggml_blocks.h"
#include "rounding.h"

enum { COLUMNS = 2048, BLOCKS = 8, REPEATS = 200 };

static double least(const Kernels *kernels, const Weight *weight, const Operand *in, int n_tokens, float *out) {
    double best = DBL_MAX;
    for (int i = 0; i < REPEATS; i++) {
        const double start = nanoseconds();
        kernels->multiply(weight, 0, BLOCKS, in, n_tokens, out, BLOCKS * BLOCK_ROWS, false);
        const double taken = nanoseconds() - start;
        best = taken < best ? taken : best;
    }
    return best / BLOCKS;
}

static void measure(const Kernels *kernels, const BlockType *type, const Operand *in, float *out) {
    Random random = {1};
    Tensor tensor = random_tensor(type, BLOCKS * BLOCK_ROWS, COLUMNS, true, &random);
    make_small(&tensor); /* of extreme scales come subnormal products, which take some processors long */
    Weight weight;
    weight_layout(&weight, &tensor, BLOCKS * BLOCK_ROWS, kernels->planar_grids);
    weight.data = allocate(BLOCKS * weight.block_bytes);
    weight_fill(&weight, &tensor, NULL, 0, BLOCKS);
    printf("%-8s %5.2f", type->name, 8.0 * (double)weight.block_bytes / (BLOCK_ROWS * COLUMNS));
    for (int n = 1; n <= TILE; n *= 2) printf(" %7.0f", least(kernels, &weight, in, n, out));
    printf("\n");
    free(weight.data);
    free((void *)tensor.data);
}

int main(int n_arguments, char **arguments) {
    const Kernels *kernels = kernels_to_measure(n_arguments, arguments);
    Random random = {2};
    float x[COLUMNS], *const out = allocate(TILE * BLOCKS * BLOCK_ROWS * sizeof *out);
    Operand *in = cpu_ops()->operand_new(NULL, COLUMNS, TILE, OPERAND_CODES | OPERAND_VALUES);
    for (int token = 0; token < TILE; token++) {
        for (int i = 0; i < COLUMNS; i++) x[i] = (float)random_normal(&random);
        kernels->store_operand(x, in, token, 0, 2 * in->n_pairs);
    }
    printf("%s\ntype      bits       1       2       4       8      16 tokens\n", kernels->name);
    for (int i = 0; i < N_BLOCK_TYPES; i++)
        if (n_arguments < 3 || !strcmp(arguments[2], block_types[i].name)) measure(kernels, &block_types[i], in, out);
    cpu_ops()->operand_free(NULL, in);
    free(out);
    return 0;
}
