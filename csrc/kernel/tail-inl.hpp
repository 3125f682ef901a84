// The last elements of a run, fewer than a vector, in memory that ends with them.
//
// load_some(from, n, x): x gets from[0] to from[n - 1], its other lanes 0; nothing behind is read.
// store_some(to, n, x): to[0] to to[n - 1] get the first lanes of x; nothing behind is written.
// Both take one instruction where the set has masks for such elements.

using Half = std::uint16_t;  // the bits of a bfloat16 or a float16

template <class T, std::size_t bytes>
using VectorOfBytes = typename VectorOf<T, bytes>::Aligned;

// Copies n < 2 * step elements by powers of two: each is a move or two, where memcpy is a call.
template <std::size_t step, class T>
ADAFACTOR_INLINE void copy_some(T* to, const T* from, std::size_t n) {
    if (n & step) {
        __builtin_memcpy(to, from, step * sizeof(T));
        to += step;
        from += step;
    }
    if constexpr (step > 1) copy_some<step / 2>(to, from, n);
}

template <class T, class Vector>
ADAFACTOR_INLINE void load_some(const T* from, std::size_t n, Vector& x) {
    constexpr std::size_t width = sizeof(Vector) / sizeof(T);
    T lane[width] = {};
    copy_some<width>(lane, from, n);
    __builtin_memcpy(&x, lane, sizeof(x));
}

template <class T, class Vector>
ADAFACTOR_INLINE void store_some(T* to, std::size_t n, const Vector& x) {
    constexpr std::size_t width = sizeof(Vector) / sizeof(T);
    T lane[width];
    __builtin_memcpy(lane, &x, sizeof(x));
    copy_some<width>(to, lane, n);
}

#if defined(__AVX512VL__) && defined(__AVX512BW__)

#define ADAFACTOR_MASKED(T, bytes, Intrinsic, Mask, load, store)                                \
    ADAFACTOR_INLINE void load_some(const T* from, std::size_t n, VectorOfBytes<T, bytes>& x) { \
        x = reinterpret_cast<VectorOfBytes<T, bytes>>(load(Mask((1u << n) - 1), from));         \
    }                                                                                           \
    ADAFACTOR_INLINE void store_some(T* to, std::size_t n, const VectorOfBytes<T, bytes>& x) {  \
        store(to, Mask((1u << n) - 1), reinterpret_cast<Intrinsic>(x));                         \
    }
ADAFACTOR_MASKED(float, 64, __m512, __mmask16, _mm512_maskz_loadu_ps, _mm512_mask_storeu_ps)
ADAFACTOR_MASKED(float, 32, __m256, __mmask8, _mm256_maskz_loadu_ps, _mm256_mask_storeu_ps)
ADAFACTOR_MASKED(double, 64, __m512d, __mmask8, _mm512_maskz_loadu_pd, _mm512_mask_storeu_pd)
ADAFACTOR_MASKED(Half, 32, __m256i, __mmask16, _mm256_maskz_loadu_epi16, _mm256_mask_storeu_epi16)
#undef ADAFACTOR_MASKED

#elif defined(__AVX2__)

#define ADAFACTOR_MASKED(T, bytes, Intrinsic, Mask, load, store, ...)                           \
    ADAFACTOR_INLINE Mask first_lanes(const T*, std::size_t n, VectorOfBytes<T, bytes>) {       \
        using Int = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;             \
        constexpr VectorOfBytes<Int, bytes> lane{__VA_ARGS__};                                  \
        return reinterpret_cast<Mask>(lane < Int(n));                                           \
    }                                                                                           \
    ADAFACTOR_INLINE void load_some(const T* from, std::size_t n, VectorOfBytes<T, bytes>& x) { \
        x = reinterpret_cast<VectorOfBytes<T, bytes>>(load(from, first_lanes(from, n, x)));     \
    }                                                                                           \
    ADAFACTOR_INLINE void store_some(T* to, std::size_t n, const VectorOfBytes<T, bytes>& x) {  \
        store(to, first_lanes(to, n, x), reinterpret_cast<Intrinsic>(x));                       \
    }
ADAFACTOR_MASKED(float, 32, __m256, __m256i, _mm256_maskload_ps, _mm256_maskstore_ps, 0, 1, 2, 3, 4,
                 5, 6, 7)
ADAFACTOR_MASKED(float, 16, __m128, __m128i, _mm_maskload_ps, _mm_maskstore_ps, 0, 1, 2, 3)
ADAFACTOR_MASKED(double, 32, __m256d, __m256i, _mm256_maskload_pd, _mm256_maskstore_pd, 0, 1, 2, 3)
#undef ADAFACTOR_MASKED

#endif

// How many of the first n elements fall into a part of `width` lanes.
ADAFACTOR_INLINE std::size_t within_part(std::size_t n, std::size_t part, std::size_t width) {
    const std::size_t before = part * width;
    return n <= before ? 0 : n - before < width ? n - before : width;
}

// The last elements of a run, fewer than a full group, through the same lanes; the others are 0.
template <class Acc, std::size_t n_lanes = kLanes<Acc>, class T>
ADAFACTOR_INLINE Lanes<Acc, n_lanes> load_first(const T* from, std::size_t n) {
    constexpr std::size_t width = n_lanes / kParts;
    Lanes<T, n_lanes> x;
    ADAFACTOR_PARTS load_some(from + part * width, within_part(n, part, width), x.part[part]);
    return converted<Acc>(x);
}

template <class T, class Acc, std::size_t n_lanes>
ADAFACTOR_INLINE void store_first(T* to, const Lanes<Acc, n_lanes>& x, std::size_t n) {
    constexpr std::size_t width = n_lanes / kParts;
    Lanes<T, n_lanes> y = converted<T>(x);
    ADAFACTOR_PARTS store_some(to + part * width, within_part(n, part, width), y.part[part]);
}
