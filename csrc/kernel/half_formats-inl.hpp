// Half-precision numbers: read as floats, exactly; written rounded, to nearest or at random.
//
// Integer arithmetic, or F16C, which has the same bits. AVX-512 BF16 has not: it takes subnormal
// numbers for zeros.

using Floats = Lanes<float>::Vector;
using Words = VectorOf<std::uint32_t, kVectorBytes>::Aligned;
using Ints = VectorOf<std::int32_t, kVectorBytes>::Aligned;
using Halves = VectorOf<Half, kVectorBytes / 2>::Aligned;
using HalvesAnywhere = VectorOf<Half, kVectorBytes / 2>::Unaligned;

constexpr std::size_t kWidth = kVectorBytes / sizeof(float);  // lanes of one part

ADAFACTOR_INLINE Words words_of(const Floats& x) { return reinterpret_cast<Words>(x); }
ADAFACTOR_INLINE Floats floats_of(const Words& x) { return reinterpret_cast<Floats>(x); }
ADAFACTOR_INLINE Words magnitude(const Floats& x) { return words_of(x) & 0x7fffffffu; }
ADAFACTOR_INLINE Words half_sign(const Floats& x) { return words_of(x) >> 16 & 0x8000u; }
ADAFACTOR_INLINE Words where(const Ints& mask, const Words& x, const Words& y) {
    return mask ? x : y;
}
// Of magnitudes, which are below 2^31: sets without an unsigned comparison have a signed one.
ADAFACTOR_INLINE Ints at_least_word(const Words& x, std::int32_t y) {
    return reinterpret_cast<Ints>(x) >= y;
}
ADAFACTOR_INLINE Halves narrowed(const Words& x) { return __builtin_convertvector(x, Halves); }

// Each format widens a vector, and rounds one to nearest, ties to even, or by `random` words below
// 2^16: upwards in magnitude as often as the part that is lost is larger than such a word.
struct Bfloat16 {
    Half bits;

    static ADAFACTOR_INLINE Floats widened(const Halves& x) {
        return floats_of(__builtin_convertvector(x, Words) << 16);
    }
    static ADAFACTOR_INLINE Halves nearest(const Floats& x) {
        const Words word = words_of(x);
        return finished(x, word + (0x7fffu + (word >> 16 & 1u)));
    }
    static ADAFACTOR_INLINE Halves stochastic(const Floats& x, const Words& random) {
        return finished(x, words_of(x) + random);
    }

private:
    static ADAFACTOR_INLINE Halves finished(const Floats& x, const Words& rounded) {
        return narrowed(where(x != x, half_sign(x) | 0x7fc0u, rounded >> 16));
    }
};

struct Float16 {
    Half bits;

    static ADAFACTOR_INLINE Floats widened(const Halves& x) {
#if defined(__AVX512F__)
        return reinterpret_cast<Floats>(_mm512_cvtph_ps(reinterpret_cast<__m256i>(x)));
#elif defined(__F16C__)
        return reinterpret_cast<Floats>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(x)));
#else
        const Words half = __builtin_convertvector(x, Words), number = half & 0x7fffu;
        const Words normal = (number << 13) + (112u << 23);
        const Floats subnormal =
            __builtin_convertvector(reinterpret_cast<Ints>(number), Floats) * 0x1p-24f;
        const Words quiet = where(at_least_word(number, 0x7c01), Words{} + 0x400000u, Words{});
        Words word = where(at_least_word(number, 0x400), normal, words_of(subnormal));
        word = where(at_least_word(number, 0x7c00), (number << 13 | 0x7f800000u) | quiet, word);
        return floats_of(word | (half & 0x8000u) << 16);
#endif
    }

    static ADAFACTOR_INLINE Halves nearest(const Floats& x) {
#if defined(__AVX512F__)
        return reinterpret_cast<Halves>(_mm512_cvtps_ph(
            reinterpret_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
        return reinterpret_cast<Halves>(_mm256_cvtps_ph(
            reinterpret_cast<__m256>(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
        const Words word = magnitude(x);
        const Words normal = (word - (112u << 23) + (0xfffu + (word >> 13 & 1u))) >> 13;
        // The sum's last bit is worth the smallest half: the addition rounds.
        const Words subnormal = words_of(floats_of(word) + 0.5f) - words_of(Floats{} + 0.5f);
        return finished(x, word, normal, subnormal);
#endif
    }

    static ADAFACTOR_INLINE Halves stochastic(const Floats& x, const Words& random) {
        const Words word = magnitude(x);
        const Words normal = (word - (112u << 23) + (random >> 3)) >> 13;
        // In units of 2^-16 of the smallest half.
        const Floats small =
            floats_of(where(at_least_word(word, kSmallestNormal), Words{}, word)) * 0x1p40f;
        const Words fixed = reinterpret_cast<Words>(__builtin_convertvector(small, Ints));
        return finished(x, word, normal, (fixed + random) >> 16);
    }

private:
    static constexpr std::int32_t kSmallestNormal = 113 << 23;  // 2^-14
    static constexpr std::int32_t kOverflow = 143 << 23;        // 2^16, as everything above 65520

    static ADAFACTOR_INLINE Halves finished(const Floats& x, const Words& word, const Words& normal,
                                            const Words& subnormal) {
        const Words nan = (word >> 13 & 0x3ffu) | 0x7e00u;
        Words half = where(at_least_word(word, kSmallestNormal), normal, subnormal);
        half = where(at_least_word(word, kOverflow), Words{} + 0x7c00u, half);
        return narrowed(where(x != x, nan, half) | half_sign(x));
    }
};

template <class T>
constexpr bool kIsHalf = std::is_same_v<T, Bfloat16> || std::is_same_v<T, Float16>;

// The sums of halves are those of floats.
template <class T>
using SumType = std::conditional_t<kIsHalf<T>, float, T>;

ADAFACTOR_INLINE Halves load_halves(const void* from) {
    return *static_cast<const HalvesAnywhere*>(from);
}

template <class Acc, std::size_t n = kLanes<Acc>, class Format>
    requires kIsHalf<Format>
ADAFACTOR_INLINE Lanes<Acc> load(const Format* from) {
    static_assert(n == kLanes<Acc>);
    if constexpr (std::is_same_v<Acc, float>) {
        Lanes<float> x;
        ADAFACTOR_PARTS x.part[part] = Format::widened(load_halves(from + part * kWidth));
        return x;
    } else {
        return load_first<double>(from, n);
    }
}

template <class Acc, std::size_t n = kLanes<Acc>, class Format>
    requires kIsHalf<Format>
ADAFACTOR_INLINE Lanes<Acc> load_first(const Format* from, std::size_t count) {
    Format half[kLanes<float>] = {};
    __builtin_memcpy(half, from, count * sizeof(Format));
    const Lanes<float> x = load<float>(half);
    if constexpr (std::is_same_v<Acc, float>) return x;
    float lane[kLanes<float>];
    store(lane, x);
    return load<Acc>(lane);
}

