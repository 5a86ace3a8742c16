/* Products of few float32 rows with weights as they are stored: x [n, in] times w [out, in] -> [n, out].
 *
 * Some rows of the weight are widened into a buffer that stays in the first cache and multiplied
 * there, so that nothing wide goes through memory. Every output is the same sum in the same order
 * (eight lanes over the columns, then the lanes), whatever the number of rows and threads. A format
 * is one function that widens columns of a row; its number is its place in WIDEN and in native.py.
 * Only bf16 that lies turned, w [in, out], is multiplied output by output beside each other: there
 * every output is the sum over blocks of its inputs, each of them summed in order.
 *
 * Threads take chunks of outputs until none is left. The caller waits only for chunks that others
 * have begun: a thread whose core is taken by another process is not waited for.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

/* STRIDE: rows of the buffer that began a page apart would fall into the same lines of the cache */
enum { LANES = 8, TILE = 4, BLOCK = 256, STRIDE = BLOCK + 16, MOST_ROWS = 64, CHUNK = 1 << 17 };
enum { LINE = 64, MOST_THREADS = 64, SLAB = 512, DEEP = 4, NARROW = 4, FEW = 8 };

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

/* A part of a matrix, as native.py lays it down: where its values and scales begin in a record, its
 * outputs and inputs, rows and columns of a block that shares a scale, scales in a row of the grid,
 * how scales are stored, whether a product is rounded to bf16, bytes of a row as stored; the first
 * of its outputs in y, and the step to the next. */
typedef struct {
    int64_t format, values, scales, rows, columns, high, wide, grid, kind, rounded, width, first, step;
} Piece;

typedef struct {
    const uint8_t *values, *scales;
    long rows, columns;
    long high, wide, grid, kind, rounded, width;
} Weight;

enum { FLOAT32, BFLOAT16, EXPONENT };

static inline float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline float scale_at(const Weight *w, long index) {
    if (w->kind == FLOAT32) return ((const float *)w->scales)[index];
    if (w->kind == BFLOAT16) return as_float((uint32_t)((const uint16_t *)w->scales)[index] << 16);
    /* a power of two; the least is below the normal numbers */
    return as_float(w->scales[index] ? (uint32_t)w->scales[index] << 23 : 1u << 22);
}

static inline float to_bfloat16(float value) {
    uint32_t bits = as_bits(value);
    return as_float((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u);
}

/* ---- one value of a format ---- */

/* ``yes`` where ``mask`` is all ones, ``no`` where it is 0: a choice that is made for many at once. */
static inline uint32_t either(uint32_t mask, uint32_t yes, uint32_t no) {
    return (yes & mask) | (no & ~mask);
}

static inline float e4m3(uint32_t byte) {
    uint32_t size = byte & 0x7f, normal = (size << 20) + (120u << 23);
    uint32_t small = as_bits((float)(int32_t)(byte & 7) * 0x1p-9f);
    uint32_t bits = either(-(uint32_t)(size < 8), small, normal);
    bits = either(-(uint32_t)(size == 0x7f), 0x7fc00000u, bits);
    return as_float(bits | (byte & 0x80) << 24);
}

static inline float e5m2(uint32_t byte) {
    uint32_t size = byte & 0x7f, normal = (size << 21) + (112u << 23);
    uint32_t small = as_bits((float)(int32_t)(byte & 3) * 0x1p-16f);
    uint32_t bits = either(-(uint32_t)(size < 4), small, normal);
    bits = either(-(uint32_t)(size > 0x7b), 0x7f800000u | (byte & 3) << 21, bits);
    return as_float(bits | (byte & 0x80) << 24);
}

/* Twice its value, a whole number: 0 1 2 3 4 6 8 12, and their negatives. */
static inline int8_t e2m1(uint8_t half) {
    uint8_t low = half & 3, three = low & low >> 1;
    uint8_t size = (half & 7) + ((low + 2 * three) & -(half >> 2 & 1)), sign = -(half >> 3);
    return (int8_t)((size ^ sign) - sign);
}

static inline int8_t int4(uint8_t half) { return (int8_t)(half - 8); }

static inline float int8(uint32_t byte) { return (float)((int32_t)byte - 128); }

/* ---- columns of a row ---- */

static void widen_bf16(const Weight *w, long row, long first, long count, float *restrict into) {
    const uint16_t *from = (const uint16_t *)(w->values + row * w->width) + first;
    for (long i = 0; i < count; i++) into[i] = as_float((uint32_t)from[i] << 16);
}

/* Columns that are done together: a number that the compiler knows, so that it counts none of them. */
enum { STEP = 32 };

/* Each run of columns that share a scale: that of the next is one further, found without a division. */
#define RUNS(DECODE, FROM)                                                                 \
    long index = row / w->high * w->grid + first / w->wide;                                \
    long run = w->wide - first % w->wide;                                                  \
    for (long at = 0; at < count; at += run, run = w->wide, index++) {                     \
        if (run > count - at) run = count - at;                                            \
        float scale = scale_at(w, index), *restrict out = into + at;                       \
        long i = 0;                                                                        \
        for (; i + STEP <= run; i += STEP) DECODE(FROM, scale, STEP, out + i);             \
        if (i < run) DECODE(FROM, scale, run - i, out + i);                                \
        if (w->rounded)                                                                    \
            for (long i = 0; i < run; i++) out[i] = to_bfloat16(out[i]);                   \
    }

#define BYTES(NAME, VALUE)                                                                      \
    static inline __attribute__((always_inline)) void NAME##_some(                              \
        const uint8_t *from, float scale, long count, float *restrict out) {                    \
        for (long i = 0; i < count; i++) out[i] = VALUE(from[i]) * scale;                       \
    }                                                                                           \
    static void NAME(const Weight *w, long row, long first, long count, float *restrict into) { \
        const uint8_t *from = w->values + row * w->width + first;                               \
        RUNS(NAME##_some, from + at + i)                                                        \
    }

/* Both halves of a byte side by side, the low one first, then whole numbers, then one loop over all:
 * written in turns they would keep the compiler from taking many at once. */
#define HALVES(NAME, WHOLE, UNIT)                                                               \
    static inline __attribute__((always_inline)) void NAME##_some(                              \
        const uint8_t *from, float scale, long count, float *restrict out) {                    \
        uint16_t pairs[STEP / 2];                                                               \
        int8_t whole[STEP];                                                                     \
        for (long i = 0; i < count / 2; i++) pairs[i] = (from[i] | from[i] << 4) & 0x0f0f;      \
        const uint8_t *half = (const uint8_t *)pairs;                                           \
        for (long i = 0; i < count; i++) whole[i] = WHOLE(half[i]);                             \
        for (long i = 0; i < count; i++) out[i] = (float)whole[i] * UNIT * scale;               \
    }                                                                                           \
    static void NAME(const Weight *w, long row, long first, long count, float *restrict into) { \
        const uint8_t *from = w->values + row * w->width + first / 2;                           \
        RUNS(NAME##_some, from + (at + i) / 2)                                                  \
    }

BYTES(widen_e4m3, e4m3)
BYTES(widen_e5m2, e5m2)
BYTES(widen_int8, int8)
HALVES(widen_e2m1, e2m1, 0.5f)
HALVES(widen_int4, int4, 1.0f)

/* Blocks of ggml. No product with an integer here is ever rounded, so that it does not matter whether
 * the compiler joins it with what is added. */

static inline float half_at(const uint8_t *bytes) {
    uint32_t bits = bytes[0] | (uint32_t)bytes[1] << 8, size = bits & 0x7fff;
    float value = size < 0x7c00 ? as_float(size << 13) * 0x1p112f : as_float(size << 13 | 0x7f800000u);
    return as_float(as_bits(value) | (bits & 0x8000u) << 16);
}

static inline void block_q8_0(const uint8_t *b, float *restrict out) {
    float d = half_at(b);
    for (int i = 0; i < 32; i++) out[i] = d * (float)(int8_t)b[2 + i];
}

static inline void block_q4_0(const uint8_t *b, float *restrict out) {
    float d = half_at(b);
    for (int i = 0; i < 16; i++) out[i] = d * (float)((b[2 + i] & 15) - 8);
    for (int i = 0; i < 16; i++) out[16 + i] = d * (float)((b[2 + i] >> 4) - 8);
}

static inline void block_q4_1(const uint8_t *b, float *restrict out) {
    float d = half_at(b), least = half_at(b + 2);
    for (int i = 0; i < 16; i++) out[i] = d * (float)(b[4 + i] & 15) + least;
    for (int i = 0; i < 16; i++) out[16 + i] = d * (float)(b[4 + i] >> 4) + least;
}

/* Eight factors and minima of six bits are in twelve bytes. */
static inline void block_q4_k(const uint8_t *b, float *restrict out) {
    float d = half_at(b), e = half_at(b + 2);
    const uint8_t *p = b + 4;
    for (int i = 0; i < 8; i++) {
        int last = i > 3, shift = i % 2 * 4;
        const uint8_t *q = b + 16 + i / 2 * 32;
        float factor = d * (float)(last ? (p[i + 4] & 15) | (p[i - 4] >> 2 & 48) : p[i] & 63);
        float least = e * (float)(last ? p[i + 4] >> 4 | (p[i] >> 2 & 48) : p[i + 4] & 63);
        for (int k = 0; k < 32; k++) out[32 * i + k] = factor * (float)(q[k] >> shift & 15) - least;
    }
}

/* Half a block is 128 weights: their low bits in 64 bytes, their high ones in 32. */
static inline void block_q6_k(const uint8_t *b, float *restrict out) {
    float d = half_at(b + 208);
    for (int i = 0; i < 16; i++) {
        int half = i / 8, at = i % 8 * 16, up = at / 64 * 4, down = at / 32 * 2;
        const uint8_t *low = b + half * 64 + at % 64, *high = b + 128 + half * 32 + at % 32;
        float factor = d * (float)(int8_t)b[192 + i];
        for (int k = 0; k < 16; k++)
            out[16 * i + k] =
                factor * (float)(((low[k] >> up & 15) | (high[k] >> down & 3) << 4) - 32);
    }
}

#define BLOCKS(NAME, WEIGHTS, BYTES)                                                      \
    static void widen_##NAME(const Weight *w, long row, long first, long count,           \
                             float *restrict into) {                                      \
        const uint8_t *b = w->values + row * w->width + first / (WEIGHTS) * (BYTES);      \
        for (long i = 0; i < count; i += (WEIGHTS), b += (BYTES)) block_##NAME(b, into + i); \
    }

BLOCKS(q8_0, 32, 34)
BLOCKS(q4_0, 32, 18)
BLOCKS(q4_1, 32, 20)
BLOCKS(q4_k, 256, 144)
BLOCKS(q6_k, 256, 210)

typedef void (*Widen)(const Weight *, long, long, long, float *restrict);
static const Widen WIDEN[] = {widen_bf16, widen_e4m3, widen_e5m2, widen_e2m1, widen_int4, widen_int8,
                              widen_q8_0, widen_q4_k, widen_q6_k, widen_q4_0, widen_q4_1};
/* of the formats that no function widens by rows */
enum { TURNED = sizeof WIDEN / sizeof *WIDEN };

/* ---- some outputs ---- */

typedef struct {
    const Weight *weight;
    Widen widen;
    const float *x;
    long num_rows;
    float *y;
    long stride, step; /* floats between rows of y, and between outputs */
} Product;

/* Two rows of x at a time: each value of the buffer is loaded once for both. */
static void multiply(const float *x, const float *y, const float *restrict wide, long count,
                     lanes *sums, int both) {
    lanes a = sums[0], b = sums[1], c = sums[2], d = sums[3];
    if (!both) {
        for (long i = 0; i < count; i += LANES) {
            lanes v = *(const lanes *)(x + i);
            a += v * *(const lanes *)(wide + i);
            b += v * *(const lanes *)(wide + STRIDE + i);
            c += v * *(const lanes *)(wide + 2 * STRIDE + i);
            d += v * *(const lanes *)(wide + 3 * STRIDE + i);
        }
    } else {
        lanes e = sums[4], f = sums[5], g = sums[6], h = sums[7];
        for (long i = 0; i < count; i += LANES) {
            lanes v = *(const lanes *)(x + i), u = *(const lanes *)(y + i);
            lanes w = *(const lanes *)(wide + i);
            a += v * w, e += u * w;
            w = *(const lanes *)(wide + STRIDE + i);
            b += v * w, f += u * w;
            w = *(const lanes *)(wide + 2 * STRIDE + i);
            c += v * w, g += u * w;
            w = *(const lanes *)(wide + 3 * STRIDE + i);
            d += v * w, h += u * w;
        }
        sums[4] = e, sums[5] = f, sums[6] = g, sums[7] = h;
    }
    sums[0] = a, sums[1] = b, sums[2] = c, sums[3] = d;
}

static float sum_of(lanes s) {
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

static inline lanes lanes_of(const uint16_t *bfloat16) {
    return (lanes)(__builtin_convertvector(*(const halves *)bfloat16, words) << 16);
}

/* The rows of a tile are far apart, and memory gives less when it is read in turns: the next tile is
 * asked for meanwhile, into the second cache, in the order in which it lies. */
static inline __attribute__((always_inline)) void ask(const void *from, long count) {
    for (long at = 0; at < count; at += LINE) __builtin_prefetch((const char *)from + at, 0, 2);
}

static inline __attribute__((always_inline)) void multiply_bf16(
    const float *x, const uint16_t *w, long columns, long count, lanes (*sums)[TILE], int rows) {
    for (long i = 0; i < count; i += LANES)
        for (int k = 0; k < TILE; k++) {
            lanes wide = lanes_of(w + k * columns + i);
            for (int row = 0; row < rows; row++)
                sums[row][k] += *(const lanes *)(x + row * columns + i) * wide;
        }
}

/* A whole tile for NARROW rows or fewer, never in a buffer: the memory is the limit, and what is
 * saved is felt. */
static inline __attribute__((always_inline)) void narrow_tile(const Product *p, long first,
                                                              int rows) {
    enum { STEP = LINE / 2 };
    long columns = p->weight->columns, at = 0;
    const uint16_t *w = (const uint16_t *)(p->weight->values + first * p->weight->width);
    lanes sums[NARROW][TILE] = {};
    for (; at + STEP <= columns; at += STEP) {
        ask(w + TILE * (columns + at), TILE * LINE);
        multiply_bf16(p->x + at, w + at, columns, STEP, sums, rows);
    }
    multiply_bf16(p->x + at, w + at, columns, columns - at, sums, rows);
    for (int row = 0; row < rows; row++)
        for (int k = 0; k < TILE; k++)
            p->y[row * p->stride + (first + k) * p->step] = sum_of(sums[row][k]);
}

/* With a number of rows that the compiler knows, or the sums were in memory. */
static void narrow(const Product *p, long first) {
    switch (p->num_rows) {
        case 1: narrow_tile(p, first, 1); break;
        case 2: narrow_tile(p, first, 2); break;
        case 3: narrow_tile(p, first, 3); break;
        case NARROW: narrow_tile(p, first, NARROW);
    }
}

static void tile(const Product *p, long first) {
    int is_bf16 = p->widen == widen_bf16;
    if (is_bf16 && p->num_rows <= NARROW && first + TILE <= p->weight->rows) {
        narrow(p, first);
        return;
    }
    float wide[TILE * STRIDE] __attribute__((aligned(64)));
    lanes sums[MOST_ROWS * TILE];
    long columns = p->weight->columns, high = p->weight->rows - first;
    high = high < TILE ? high : TILE;
    memset(sums, 0, sizeof(lanes) * TILE * p->num_rows);
    if (high < TILE) memset(wide, 0, sizeof wide);
    /* With many rows not the memory is the limit: then what is wanted next goes to the first cache. */
    int in_order = is_bf16 && p->num_rows <= FEW;
    long width = p->weight->width, block = BLOCK * width / columns, at = 0;
    const uint8_t *next = p->weight->values + (first + TILE) * width;
    for (long column = 0; column < columns; column += BLOCK, at += block) {
        long count = columns - column < BLOCK ? columns - column : BLOCK;
        if (in_order) ask(next + TILE * at, TILE * block);
        for (long i = 0; i < high; i++) {
            for (long line = at; !in_order && line < at + block; line += LINE)
                __builtin_prefetch(next + i * width + line);
            p->widen(p->weight, first + i, column, count, wide + i * STRIDE);
        }
        for (long row = 0; row < p->num_rows; row += 2) {
            const float *x = p->x + row * columns + column;
            multiply(x, x + columns, wide, count, sums + row * TILE, row + 1 < p->num_rows);
        }
    }
    for (long row = 0; row < p->num_rows; row++)
        for (long i = 0; i < high; i++)
            p->y[row * p->stride + (first + i) * p->step] = sum_of(sums[row * TILE + i]);
}

/* BLOCK inputs or fewer of ``count`` outputs that lie beside each other, added to ``sums``. */
static void add_inputs(const Product *p, const uint16_t *w, long column, long last, long count,
                       float (*sums)[SLAB]) {
    float parts[MOST_ROWS][SLAB], wide[DEEP][SLAB];
    long rows = p->weight->rows;
    memset(parts, 0, sizeof *parts * p->num_rows);
    for (; column < last; column += DEEP, w += DEEP * rows) {
        for (int k = 0; k < DEEP; k++)
            for (long i = 0; i < count; i += LANES) {
                if (i % (LINE / 2) == 0) __builtin_prefetch(w + (2 * DEEP + k) * rows + i);
                *(lanes *)(wide[k] + i) = lanes_of(w + k * rows + i);
            }
        for (long row = 0; row < p->num_rows; row++) {
            const float *x = p->x + row * p->weight->columns + column;
            for (long i = 0; i < count; i += LANES) {
                lanes sum = *(lanes *)(parts[row] + i);
                for (int k = 0; k < DEEP; k++) sum += x[k] * *(lanes *)(wide[k] + i);
                *(lanes *)(parts[row] + i) = sum;
            }
        }
    }
    for (long row = 0; row < p->num_rows; row++)
        for (long i = 0; i < count; i++) sums[row][i] += parts[row][i];
}

/* SLAB outputs of a weight that lies turned, or as many as are left. */
static void slab(const Product *p, long first) {
    float sums[MOST_ROWS][SLAB];
    long rows = p->weight->rows, columns = p->weight->columns;
    long count = rows - first < SLAB ? rows - first : SLAB;
    const uint16_t *w = (const uint16_t *)p->weight->values + first;
    memset(sums, 0, sizeof *sums * p->num_rows);
    for (long column = 0; column < columns; column += BLOCK) {
        long last = column + BLOCK < columns ? column + BLOCK : columns;
        add_inputs(p, w + column * rows, column, last, count, sums);
    }
    for (long row = 0; row < p->num_rows; row++)
        for (long i = 0; i < count; i++) p->y[row * p->stride + (first + i) * p->step] = sums[row][i];
}

/* ---- a matrix ---- */

/* Rows and the matrix that they are multiplied with, as native.py lays it down: rows of x [rows,
 * columns] with the ``pieces`` of ``record``, output o of row r into y[r * stride + o]; how many
 * chunks that makes is written here. */
typedef struct {
    const Piece *pieces;
    int64_t number;
    const uint8_t *record;
    const float *x;
    int64_t rows;
    float *y;
    int64_t stride, chunks;
} Job;

/* Outputs of a piece that a thread takes at once. */
static long high_of(const Piece *piece) {
    if (piece->format == TURNED) return SLAB;
    long rows = CHUNK / piece->columns / TILE * TILE;
    return rows ? rows : TILE;
}

static long chunks_of(const Piece *piece) {
    long high = high_of(piece);
    return (piece->rows + high - 1) / high;
}

/* Its outputs of some rows after the other: the weights lie in the second cache then. */
static void do_chunk(const Job *job, long chunk) {
    for (; chunk >= job->chunks; job++) chunk -= job->chunks;
    const Piece *piece = job->pieces;
    for (; chunk >= chunks_of(piece); piece++) chunk -= chunks_of(piece);
    Weight w = {job->record + piece->values, job->record + piece->scales,
                piece->rows,  piece->columns, piece->high,    piece->wide,
                piece->grid,  piece->kind,    piece->rounded, piece->width};
    int turned = piece->format == TURNED;
    long high = high_of(piece), begin = chunk * high;
    long end = begin + high < w.rows ? begin + high : w.rows;
    for (long row = 0; row < job->rows; row += MOST_ROWS) {
        long rows = job->rows - row < MOST_ROWS ? job->rows - row : MOST_ROWS;
        Product p = {&w, turned ? NULL : WIDEN[piece->format], job->x + row * w.columns, rows,
                     job->y + row * job->stride + piece->first, job->stride, piece->step};
        if (turned) slab(&p, begin);
        for (long first = begin; first < end && !turned; first += TILE) tile(&p, first);
    }
}

/* ---- threads ---- */

static struct {
    pthread_mutex_t calls, lock; /* one product at a time; what follows */
    pthread_cond_t begun, ended;
    int num_helpers, asleep;
    const Job *jobs;
    atomic_int core;      /* of the caller; -1: not known */
    atomic_long number;   /* of the product: it changes when one begins */
    atomic_long next;     /* chunks of it that were taken, and whose: number << 32 | chunks */
    atomic_long left;     /* chunks that are not done */
    long num_chunks;
} pool = {.calls = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .begun = PTHREAD_COND_INITIALIZER,
          .ended = PTHREAD_COND_INITIALIZER};

/* Chunks of product ``number`` until none is left. What a chunk needs stays as it is as long as the
 * caller waits for it, and one is taken only of the product that is named. */
static void work(long number) {
    for (;;) {
        long taken = atomic_load(&pool.next);
        do {
            if (taken >> 32 != number || (taken & 0xffffffff) >= pool.num_chunks) return;
        } while (!atomic_compare_exchange_weak(&pool.next, &taken, taken + 1));
        do_chunk(pool.jobs, taken & 0xffffffff);
        if (atomic_fetch_sub(&pool.left, 1) == 1) {
            pthread_mutex_lock(&pool.lock);
            pthread_cond_signal(&pool.ended);
            pthread_mutex_unlock(&pool.lock);
        }
    }
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

/* How long a thread asks again before it sleeps; whoever else wants its core gets it. */
static const double PATIENCE_S = 1e-3;

#ifdef __linux__
static cpu_set_t cores; /* where helpers may run */

/* Threads that wake each other the system may leave on one core for long, and nothing is gained by
 * the second: a helper that is on its caller's moves away. */
static void leave(int core) {
    cpu_set_t others = cores;
    if (sched_getcpu() != core) return;
    CPU_CLR(core, &others);
    if (CPU_COUNT(&others)) pthread_setaffinity_np(pthread_self(), sizeof others, &others);
}
#else
static int sched_getcpu(void) { return -1; }
static void leave(int core) {}
#endif

static void *helper(void *unused) {
    long done = 0;
    for (;;) {
        double until = seconds() + PATIENCE_S;
        while (atomic_load(&pool.number) == done && seconds() < until) sched_yield();
        if (atomic_load(&pool.number) == done) {
            pthread_mutex_lock(&pool.lock);
            pool.asleep++;
            while (atomic_load(&pool.number) == done) pthread_cond_wait(&pool.begun, &pool.lock);
            pool.asleep--;
            pthread_mutex_unlock(&pool.lock);
        }
        done = atomic_load(&pool.number);
        leave(atomic_load(&pool.core));
        work(done);
    }
    return unused;
}

/* A fork has none of its parent's threads. */
static void after_fork(void) {
    pthread_mutex_init(&pool.calls, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.begun, NULL);
    pthread_cond_init(&pool.ended, NULL);
    pool.num_helpers = pool.asleep = 0;
}

static void need_helpers(int wanted) {
    if (!pool.num_helpers) {
        pthread_atfork(NULL, NULL, after_fork);
#ifdef __linux__
        pthread_getaffinity_np(pthread_self(), sizeof cores, &cores);
#endif
    }
    while (pool.num_helpers < wanted && pool.num_helpers < MOST_THREADS) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, helper, NULL)) break;
        pthread_detach(thread);
        pool.num_helpers++;
    }
}

static void in_parallel(const Job *jobs, long num_chunks, int num_threads) {
    if (num_threads < 2 || num_chunks < 2) {
        for (long i = 0; i < num_chunks; i++) do_chunk(jobs, i);
        return;
    }
    pthread_mutex_lock(&pool.calls);
    pthread_mutex_lock(&pool.lock);
    need_helpers(num_threads - 1);
    long number = (atomic_load(&pool.number) + 1) & 0x3fffffff;
    /* nobody may take what was left of the last product */
    atomic_store(&pool.next, -1);
    pool.jobs = jobs, pool.num_chunks = num_chunks;
    atomic_store(&pool.core, sched_getcpu());
    atomic_store(&pool.left, num_chunks);
    atomic_store(&pool.next, number << 32);
    atomic_store(&pool.number, number);
    if (pool.asleep) pthread_cond_broadcast(&pool.begun);
    pthread_mutex_unlock(&pool.lock);
    work(number);
    double until = seconds() + PATIENCE_S / 20;
    while (atomic_load(&pool.left) && seconds() < until) sched_yield();
    pthread_mutex_lock(&pool.lock);
    while (atomic_load(&pool.left)) pthread_cond_wait(&pool.ended, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&pool.calls);
}

/* ---- what Python calls ---- */

/* All of the ``jobs``, which write beside each other. Columns are a multiple of 8, and outputs of what
 * lies turned. */
void specmoe_products(Job *jobs, int num_jobs, int num_threads) {
    long num_chunks = 0;
    for (Job *job = jobs; job < jobs + num_jobs; num_chunks += job++->chunks) {
        job->chunks = 0;
        for (int i = 0; i < job->number; i++) job->chunks += chunks_of(job->pieces + i);
    }
    in_parallel(jobs, num_chunks, num_threads);
}
