#include "instruction_sets.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#if defined(BEE_HAVE_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "error.h"

#if defined(__x86_64__)
/* Asked here and not through __builtin_cpu_supports, which needs a part of the compiler's own library that some leave
 * out (it says no to everything then), and which older compilers give fewer names. */
typedef struct Features {
    unsigned leaf1_c, leaf7_b, leaf7_c, leaf7_d, leaf7_1_a; /* words of CPUID */
    unsigned saved;                                         /* registers that the system saves: XCR0 */
} Features;

enum {
    BIT_FMA = 1 << 12,
    BIT_OSXSAVE = 1 << 27,
    BIT_AVX = 1 << 28,
    BIT_F16C = 1 << 29, /* leaf 1, ECX */
    BIT_AVX2 = 1 << 5,
    BIT_AVX512F = 1 << 16,
    BIT_AVX512DQ = 1 << 17,
    BIT_AVX512BW = 1 << 30, /* leaf 7, EBX */
    BIT_AVX512VBMI = 1 << 1,
    BIT_AVX512VNNI = 1 << 11, /* leaf 7, ECX */
    BIT_AMX_TILE = 1 << 24,
    BIT_AMX_INT8 = 1 << 25, /* leaf 7, EDX */
    BIT_AVX_VNNI = 1 << 4,  /* leaf 7.1, EAX */
    SAVED_YMM = 0x06,
    SAVED_ZMM = 0xE6,
    SAVED_TILES = 0x60000
};
#define BIT_AVX512VL (1u << 31) /* leaf 7, EBX */

static Features cpu_features(void) {
    Features f = {0};
    unsigned a, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d)) f.leaf1_c = c;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        f.leaf7_b = b;
        f.leaf7_c = c;
        f.leaf7_d = d;
        if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) f.leaf7_1_a = a;
    }
    if (f.leaf1_c & BIT_OSXSAVE) __asm__("xgetbv" : "=a"(f.saved), "=d"(d) : "c"(0));
    return f;
}

static bool has_all(unsigned word, unsigned bits) { return (word & bits) == bits; }

static bool has_avx2(Features f) {
    return has_all(f.leaf1_c, BIT_FMA | BIT_AVX | BIT_F16C) && has_all(f.leaf7_b, BIT_AVX2) &&
           has_all(f.saved, SAVED_YMM);
}

static bool has_avx512(Features f) {
    return has_avx2(f) && has_all(f.leaf7_b, BIT_AVX512F | BIT_AVX512DQ | BIT_AVX512BW | BIT_AVX512VL) &&
           has_all(f.leaf7_c, BIT_AVX512VNNI) && has_all(f.saved, SAVED_ZMM);
}

static bool has_vbmi(Features f) { return has_avx512(f) && has_all(f.leaf7_c, BIT_AVX512VBMI); }

static bool has_amx(Features f) {
    return has_vbmi(f) && has_all(f.leaf7_d, BIT_AMX_TILE | BIT_AMX_INT8) && has_all(f.saved, SAVED_TILES);
}
#endif

/* Linux lets no process use tiles that has not asked; all its threads may then, and for good
 * (Documentation/arch/x86/xstate.rst). */
static bool may_use(const Kernels *kernels) {
#if defined(BEE_HAVE_AMX)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return kernels != &bee_kernels_amx || !syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA);
#else
    return kernels;
#endif
}

#if defined(__aarch64__)
static bool has_dot_product(void) {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__ARM_FEATURE_DOTPROD) /* what the compiler takes for granted, as on every Apple machine */
    return true;
#else
    return false;
#endif
}
#endif

/* Whether this processor and its system can run the kernels of that name. */
static bool can_run(const char *name) {
#if defined(__x86_64__)
    const Features f = cpu_features();
    if (!strcmp(name, "amx")) return has_amx(f);
    if (!strcmp(name, "avx512_vbmi")) return has_vbmi(f);
    if (!strcmp(name, "avx512")) return has_avx512(f);
    if (!strcmp(name, "avxvnni")) return has_avx2(f) && has_all(f.leaf7_1_a, BIT_AVX_VNNI);
    if (!strcmp(name, "avx2")) return has_avx2(f);
#elif defined(__aarch64__)
    if (!strcmp(name, "neon_dotprod")) return has_dot_product();
    if (!strcmp(name, "neon")) return true;
#endif
    return !strcmp(name, "portable");
}

/* Best first, but for tiles, which have not been run on such a processor yet: they are for those who ask. */
static const Kernels *const compiled_kernels[] = {
#if defined(BEE_HAVE_AVX512_VBMI)
    &bee_kernels_avx512_vbmi,
#endif
#if defined(BEE_HAVE_AMX)
    &bee_kernels_amx,
#endif
#if defined(BEE_HAVE_AVX512)
    &bee_kernels_avx512,
#endif
#if defined(BEE_HAVE_AVXVNNI)
    &bee_kernels_avxvnni,
#endif
#if defined(BEE_HAVE_AVX2)
    &bee_kernels_avx2,
#endif
#if defined(BEE_HAVE_NEON_DOTPROD)
    &bee_kernels_neon_dotprod,
#endif
#if defined(BEE_HAVE_NEON)
    &bee_kernels_neon,
#endif
    &bee_kernels_portable};

enum { N_COMPILED = sizeof compiled_kernels / sizeof *compiled_kernels };

static const char *available_names[N_COMPILED + 1];

static void find_available(void) {
    int n = 0;
    for (int i = 0; i < N_COMPILED; i++)
        if (can_run(compiled_kernels[i]->name)) available_names[n++] = compiled_kernels[i]->name;
}

const char *const *bee_instruction_sets(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, find_available);
    return available_names;
}

static const Kernels *find_kernels(const char *name) {
    for (int i = 0; i < N_COMPILED; i++)
        if (!strcmp(compiled_kernels[i]->name, name)) return compiled_kernels[i];
    return NULL;
}

const Kernels *choose_kernels(const char *wanted, bee_error *error) {
    const char *const *available = bee_instruction_sets();
    if (!wanted) return find_kernels(available[0]);
    char list[64] = "";
    for (int i = 0; available[i]; i++) {
        if (!strcmp(available[i], wanted)) {
            const Kernels *kernels = find_kernels(wanted);
            if (may_use(kernels)) return kernels;
            bee_fail(error, BEE_ERROR_ARGUMENT, "the system lets this process use no tile registers (amx)");
            return NULL;
        }
        strcat(strcat(list, i ? ", " : ""), available[i]);
    }
    bee_fail(error, BEE_ERROR_ARGUMENT, "instruction set '%.32s' is not available; this machine has: %s", wanted, list);
    return NULL;
}
