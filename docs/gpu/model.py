"""What the CUDA kernels must take, computed: prints the tables of model.md. Times are in microseconds."""

from itertools import product as product_of
from math import ceil, log2

COPY = 0.92  # copy bandwidth over the vendor's figure: assumed
FIXED = 2.0  # launch in a graph, first copies, last blocks, per kernel: assumed, 1.5 to 2.5
OVERLAPPING = {"H100 SXM": 0.8}  # what is left of it where kernels overlap, last blocks and the wait's end: assumed
ISSUE = 0.85  # of the four instructions per clock, with warps enough: assumed
STALL = 70  # clocks that a lone warp waits per section of the inner loop: assumed
SECTIONS = (1, 1, 2)  # of 16 rows x 64 columns, for 8, 16 and 64 tokens: assumed, from the order of the machine code
CHAIN = 460  # clocks of store_group's shuffles and divisions: assumed
SUM = 500  # clocks of a norm's sum: shuffles, a barrier, shuffles, root and divisions: assumed

# SMs, GHz, GB/s, int8 multiply-adds per clock and SM, L2 MB and GB/s, shared KiB per SM, clocks to DRAM and L2
CARDS = {
    "RTX 3090": (82, 1.70, 936, 1024, 6, 2000, 100, 470, 260),
    "RTX 4090": (128, 2.52, 1008, 1024, 72, 5000, 100, 541, 273),
    "H100 SXM": (132, 1.755, 3350, 4096, 50, 5500, 228, 478, 263),
}
# Bytes of 256 columns; instructions per 16 rows x 64 columns, copies included, and registers, for 8, 16 and 64 tokens:
# sm_86, then sm_90
TYPES = {
    "Q4_K": (144, ((105, 146, 412), (107, 148, 416)), ((96, 102, 140), (98, 104, 141))),
    "Q5_K": (176, ((122, 163, 430), (123, 165, 433)), ((96, 103, 140), (96, 104, 143))),
    "Q6_K": (210, ((141, 199, 584), (142, 200, 590)), ((89, 93, 124), (87, 96, 127))),
}
# layers, hidden, ffn, query heads, key heads, head size, vocabulary, type, type of the head and of half of v and down
SHAPES = {
    "Qwen3-8B Q4_K_M": (36, 4096, 12288, 32, 8, 128, 151936, "Q4_K", "Q6_K", "Q6_K"),
    "Llama-3.1-8B Q4_K_M": (32, 4096, 14336, 32, 8, 128, 128256, "Q4_K", "Q6_K", "Q6_K"),
    "27B Q5_K_S": (64, 5120, 20480, 40, 8, 128, 248320, "Q5_K", "Q6_K", "Q5_K"),
    "31B Q4_K_M": (60, 5376, 21504, 32, 16, 256, 262144, "Q4_K", "Q6_K", "Q6_K"),
}
CONTEXT, DRAFT_LAYERS, TAPS = 1024, 5, 5
PARTIAL_BYTES = 72 << 20  # of attention: work_sizes.h
ATTEND_BLOCKS, FOLD_BLOCKS = 4, 12  # that an SM takes at a time


def form(card, kind, n):
    """Tiles of 8 tokens; bytes of the ring and of a slot; blocks on an SM; instructions; waits."""
    tiles = 1 if n <= 8 else 2 if n <= 16 else 8
    size, code, registers = (x if isinstance(x, int) else x[card == "H100 SXM"] for x in TYPES[kind])
    i, slot = (1, 2, 8).index(tiles), 4 * 16 * size + tiles * 8 * (256 + 64) // (2 if tiles == 8 else 1)
    ring = slot * (2 if tiles == 8 or (kind == "Q6_K" and tiles == 2) else 3)
    blocks = min(CARDS[card][6] * 1024 // (ring + 128 + 1024), 65536 // (ceil(registers[i] / 8) * 8 * 128))
    return tiles, ring, slot, blocks, code[i], SECTIONS[i]


def efficiency(code, sections, warps):  # of a scheduler's issue slots
    return min(ISSUE, warps * code / (code + STALL * sections))


def overlapped(*times):  # the largest decides: assumed
    return sum(t**4 for t in times) ** 0.25


def fixed(card):
    return OVERLAPPING.get(card, FIXED)


def product(card, rows, columns, kind, n, largest=0, behind=0.0):
    """Bytes and time of one launch. `rows`: of all matrices; `largest`: of the one whose parts are taken; `behind`:
    what a small kernel before it takes, during which the first weights travel where kernels overlap."""
    sms, ghz, gbs, mac, _, l2, _, _, near = CARDS[card]
    tiles, ring, slot, resident, code, sections = form(card, kind, n)
    blocks, units, turns = ceil(rows / 64), ceil(columns / 256), ceil(n / 8 / tiles)
    parts = min(ceil(256 / ceil((largest or rows) / 64)), max(1, units // 4))
    pairs, total = ceil(units / parts) * 4, blocks * parts * turns
    size, each = rows * columns // 256 * TYPES[kind][0], ceil(total / sms)  # blocks of the busiest SM
    issue = each * pairs * code / efficiency(code, sections, min(resident, each)) / ghz / 1e3
    # mma.sync reaches half of what wgmma does on the H100: assumed
    mma = each * pairs * 4 * 2 * tiles * 4096 / (mac / (2 if mac > 1024 else 1)) / ghz / 1e3
    memory = size / (gbs * COPY) / 1e3  # further turns find it in the L2
    if card in OVERLAPPING:
        ahead = min(size, sms * min(resident, each) * (ring // slot - 1) * 64 * TYPES[kind][0])
        memory -= min(ahead / (gbs * COPY) / 1e3, behind)
    sums = 2 * 4 * 64 * n * blocks * parts if parts > 1 else 0
    cached = (size * turns + blocks * turns * units * 4 * tiles * 640 + sums) / l2 / 1e3
    return size, overlapped(memory, issue, mma, cached) + fixed(card) + (3 * near / ghz / 1e3 if parts > 1 else 0)


def wait(card, dram, near, clocks):  # what a small kernel waits for, one after the other
    _, ghz, _, _, _, _, _, far_latency, near_latency = CARDS[card]
    return (dram * far_latency + near * near_latency + clocks) / ghz / 1e3 + fixed(card)


def norm_time(card, h, n):  # up to 16 rows a warp has one group, beyond that a block has a row
    blocks, groups = (n * ceil(h / 1024), 1) if n <= 16 else (n, ceil(h / 1024))
    waves = ceil(blocks / CARDS[card][0])
    return wait(card, 0, 2 * waves, waves * (SUM + groups * CHAIN))


def attention(card, shape, n, context):
    """Launches of each kernel; times of attend and fold. Rows take part in a launch as work_sizes.h says."""
    _, _, _, heads, kv, size, _, _, _, _ = shape
    sms, ghz, gbs, mac, l2_size, l2, *_ = CARDS[card]
    chunks = 2 ** ceil(log2((context + n - 1) / 128))  # of the grid
    together = max(16, min(128, PARTIAL_BYTES // (heads * chunks * (size + 2) * 4) // 16 * 16))
    launches, rows, seen = ceil(n / together), min(n, together), context + n // 2
    tiles, keys = ceil(rows / (16 // min(heads // kv, 16))), 4 * kv * size * seen
    partials = rows * heads * seen / 128 * (size + 2) * 4
    spilled = min(partials, max(0, partials + keys - l2_size * 1e6))  # out of the L2
    mma = tiles * 16 * kv * seen * size * 2 / (sms * ghz * mac / (8 if mac > 1024 else 4) * 1e3)
    first, idle = wait(card, 3, 5, 1800 * size / 128) - fixed(card), wait(card, 0, 2, 100) - fixed(card)
    slots = tiles * kv / sms / ATTEND_BLOCKS
    turns = max(0, slots * seen / 128 - 1) * first + slots * (chunks - seen / 128) * idle
    memory, cached = (keys + spilled) / gbs / COPY / 1e3, (keys * tiles + partials) / l2 / 1e3
    attend = fixed(card) + first + overlapped(memory, cached, mma, turns)
    fold = wait(card, 0, 2 * ceil(context / 512), CHAIN + 200)
    turns = max(0, rows * heads * size / 128 / sms / FOLD_BLOCKS - 1) * (fold - fixed(card))
    fold += overlapped(turns, spilled / gbs / COPY / 1e3, partials / l2 / 1e3)
    return launches, launches * attend, launches * fold


def layer(card, shape, n, context=CONTEXT):
    """(name, launches, bytes, time) of each kernel."""
    _, h, ff, heads, kv, size, _, kind, _, more = shape
    norm = norm_time(card, h, n)
    turns, attend, fold = attention(card, shape, n, context)
    q, k, mixed = heads * size, kv * size, more != kind
    plain = product(card, q + 2 * k, h, kind, n, q, norm)
    split = [product(card, q + k, h, kind, n, q, norm), product(card, k, h, more, n)]
    halves = [plain, [sum(x) for x in zip(*split, strict=True)]] if mixed else [plain] * 2
    down = [product(card, h, ff, t, n) for t in (kind, more)]
    return [
        ("norm, twice", 2, 0, 2 * norm),
        ("q, k, v", 1.5 if mixed else 1, *(sum(x) / 2 for x in zip(*halves, strict=True))),
        ("rotate, store", 1, 0, wait(card, 1, 2, 700)),
        ("attend", turns, 4 * kv * size * context, attend),
        ("fold", turns, 0, fold),
        ("attention output", 1, *product(card, h, q, kind, n, behind=fold / turns)),
        ("gate, up", 1, *product(card, 2 * ff, h, kind, n, ff, norm)),
        ("down", 1, *(sum(x) / 2 for x in zip(*down, strict=True))),
    ]


def passed(card, shape, n, head_rows=None, layers=None):  # launches, bytes, time
    _, h, _, _, _, _, vocab, _, head, _ = shape
    count, rows, kernels = layers or shape[0], n if head_rows is None else head_rows, layer(card, shape, n)
    small = 2 * wait(card, 1, 1, 200) + kernels[0][3] / 2 + wait(card, 0, 8, 2000) + wait(card, 0, 4, 1200)
    ends = [sum(x) for x in zip((5, 0, small), (1, *product(card, vocab, h, head, rows)), strict=True)]
    return [count * sum(k[i] for k in kernels) + ends[i - 1] for i in (1, 2, 3)]


def cycle(card, shape, n=16):
    _, h, _, _, kv, size, _, kind, _, _ = shape
    verify, draft = passed(card, shape, n), passed(card, shape, n, n - 1, DRAFT_LAYERS)
    fc, kv_product = product(card, h, TAPS * h, kind, n), product(card, 2 * kv * size, h, kind, n, kv * size)
    inject = fc[1] + wait(card, 0, 2, CHAIN) + wait(card, 1, 1, 200) + layer(card, shape, n)[0][3] / 2
    inject += DRAFT_LAYERS * (kv_product[1] + wait(card, 1, 2, 700)) + TAPS * wait(card, 0, 1, 50)
    return verify[2] + draft[2] + inject + 3 * wait(card, 0, 3, 500)


def table(head, rows):
    print(f"\n| {head} |\n| --- |" + " ---: |" * head.count("|"))
    for row in rows:
        print("| " + " | ".join(str(x) for x in row) + " |")


def main():
    rows = []
    for card, kind, n in product_of(CARDS, TYPES, (8, 16, 64)):
        sms, ghz, gbs, mac, _, _, _, far, _ = CARDS[card]
        tiles, ring, slot, blocks, code, sections = form(card, kind, n)
        memory, issue = TYPES[kind][0] * 4 / (gbs * COPY / sms / ghz), code / 4
        clocks = (memory, 2 * tiles * 4096 // mac, issue, issue / efficiency(code, sections, blocks), ring / 1024)
        flight = f"{blocks * (ring - slot) / 1024:.0f} / {gbs * far / ghz / sms / 1e3:.1f}"
        rows.append((card, kind, n, *(f"{x:.0f}" for x in clocks), blocks, flight))
    table("card | type | tokens | memory | MMA | issue | stalls | ring KiB | blocks | in flight / needed KB", rows)
    rows, sizes = [], (1, 16, 128)
    for i in range(8):
        columns = [layer(card, SHAPES["27B Q5_K_S"], n)[i] for card in CARDS for n in sizes]
        rows.append((*columns[0][:2], f"{columns[0][2] / 1e6:.1f}", *(f"{c[3]:.0f}" for c in columns)))
    table("kernel | launches | MB" + "".join(f" | {c.split()[-1]}, {n}" for c in CARDS for n in sizes), rows)
    times, figures = [], []
    for card, (sms, ghz, gbs, mac, *_) in CARDS.items():
        for name, shape in SHAPES.items():
            passes = [passed(card, shape, n) for n in (1, 4, 8, 16)] + [passed(card, shape, 128, 1)]
            launches, size, one = passes[0]
            weights = shape[0] * shape[1] * (2 * (shape[3] + shape[4]) * shape[5] + 3 * shape[2])
            prefill = 128 * weights / (sms * ghz * mac * 1e3) / passes[4][2]
            turn = cycle(card, shape) / (one + 2 * wait(card, 0, 3, 500))
            times.append((card, name, f"{size / 1e9:.2f}", f"{launches:.0f}", *(f"{p[2] / 1e3:.2f}" for p in passes)))
            decode = f"{size / (gbs * COPY) / 1e3 / one:.0%}"
            figures.append((card, name, decode, *(f"{p[2] / one:.2f}" for p in passes[1:4])))
            figures[-1] += (f"{turn:.2f}", f"{9.3 / turn:.1f}", f"{prefill:.0%}", "-")
    table("card | model | GB | launches | 1 | 4 | 8 | 16 | 128", times)
    table("card | model | decode | 4 / 1 | 8 / 1 | 16 / 1 | cycle | 9.3 tokens | prefill | measured", figures)


if __name__ == "__main__":
    main()
