// Sixteen floats or eight doubles, whatever the width of the machine's registers; or, beside
// doubles, eight floats.
//
// Every instruction set adds in the order of these virtual lanes, so all give the same bits. They
// are kept as several vectors of the set's own width (ADAFACTOR_VECTOR_BYTES), because compilers
// spill vectors wider than the registers. Included once per instruction set, inside its namespace.

constexpr std::size_t kVectorBytes = ADAFACTOR_VECTOR_BYTES;
constexpr std::size_t kParts = 64 / kVectorBytes;

#define ADAFACTOR_INLINE inline __attribute__((always_inline))
#define ADAFACTOR_PARTS _Pragma("GCC unroll 4") for (std::size_t part = 0; part < kParts; ++part)

// `Aligned` vectors live in registers; `Unaligned` ones are read and written at any address.
template <class T, std::size_t bytes>
struct VectorOf {
    typedef T Aligned __attribute__((vector_size(bytes)));
    typedef T Unaligned __attribute__((vector_size(bytes), aligned(1), may_alias));
};

template <class T, std::size_t n = 64 / sizeof(T)>
struct Lanes {
    static constexpr std::size_t kCount = n;
    using Vector = typename VectorOf<T, n * sizeof(T) / kParts>::Aligned;
    Vector part[kParts];
};

template <class T>
constexpr std::size_t kLanes = Lanes<T>::kCount;

template <class T, std::size_t n = kLanes<T>>
ADAFACTOR_INLINE Lanes<T, n> broadcast(T value) {
    Lanes<T, n> x;
    ADAFACTOR_PARTS x.part[part] = typename Lanes<T, n>::Vector{} + value;
    return x;
}

template <class To, class From>
ADAFACTOR_INLINE To converted_vector(const From& x) {
#if defined(__AVX512F__) && !defined(__clang__)
    // GCC converts eight floats to doubles by halves, in five instructions.
    if constexpr (sizeof(To) == 64 && sizeof(From) == 32)
        return reinterpret_cast<To>(_mm512_cvtps_pd(reinterpret_cast<__m256>(x)));
#endif
    return __builtin_convertvector(x, To);
}

template <class To, class From, std::size_t n>
ADAFACTOR_INLINE Lanes<To, n> converted(const Lanes<From, n>& x) {
    if constexpr (sizeof(To) == sizeof(From)) {
        return x;
    } else {
        Lanes<To, n> y;
        ADAFACTOR_PARTS y.part[part] =
            converted_vector<typename Lanes<To, n>::Vector>(x.part[part]);
        return y;
    }
}

template <class Acc, std::size_t n = kLanes<Acc>, class T>
ADAFACTOR_INLINE Lanes<Acc, n> load(const T* from) {
    using Unaligned = typename VectorOf<T, n * sizeof(T) / kParts>::Unaligned;
    Lanes<T, n> x;
    ADAFACTOR_PARTS x.part[part] = *reinterpret_cast<const Unaligned*>(from + part * n / kParts);
    return converted<Acc>(x);
}

template <class T, class Acc, std::size_t n>
ADAFACTOR_INLINE void store(T* to, const Lanes<Acc, n>& x) {
    using Unaligned = typename VectorOf<T, n * sizeof(T) / kParts>::Unaligned;
    Lanes<T, n> y;
    if constexpr (sizeof(T) == sizeof(Acc))
        y = x;
    else
        y = converted<T>(x);
    ADAFACTOR_PARTS* reinterpret_cast<Unaligned*>(to + part * n / kParts) = y.part[part];
}

// y's lanes behind x's, in a vector of twice the size.
template <class Twice, class Vector, std::size_t... k>
ADAFACTOR_INLINE Twice joined_vector(const Vector& x, const Vector& y, std::index_sequence<k...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(x, y, k...);
#else
    Twice both;
    __builtin_memcpy(&both, &x, sizeof(x));
    __builtin_memcpy(reinterpret_cast<char*>(&both) + sizeof(x), &y, sizeof(y));
    return both;
#endif
}

template <class T, std::size_t n>
ADAFACTOR_INLINE Lanes<T, 2 * n> joined(const Lanes<T, n>& x, const Lanes<T, n>& y) {
    using Twice = typename Lanes<T, 2 * n>::Vector;
    constexpr std::make_index_sequence<2 * n / kParts> all{};
    Lanes<T, 2 * n> both;
    if constexpr (kParts == 1) {
        both.part[0] = joined_vector<Twice>(x.part[0], y.part[0], all);
    } else {
        ADAFACTOR_PARTS {
            const Lanes<T, n>& from = part < kParts / 2 ? x : y;
            const std::size_t first = part * 2 % kParts;
            both.part[part] = joined_vector<Twice>(from.part[first], from.part[first + 1], all);
        }
    }
    return both;
}

#define ADAFACTOR_LANEWISE(op)                                                             \
    template <class T, std::size_t n>                                                      \
    ADAFACTOR_INLINE Lanes<T, n> operator op(const Lanes<T, n>& a, const Lanes<T, n>& b) { \
        Lanes<T, n> c;                                                                     \
        ADAFACTOR_PARTS c.part[part] = a.part[part] op b.part[part];                       \
        return c;                                                                          \
    }
ADAFACTOR_LANEWISE(+)
ADAFACTOR_LANEWISE(-)
ADAFACTOR_LANEWISE(*)
ADAFACTOR_LANEWISE(/)
#undef ADAFACTOR_LANEWISE

ADAFACTOR_INLINE double root_of(double x) { return __builtin_sqrt(x); }
ADAFACTOR_INLINE float root_of(float x) { return __builtin_sqrtf(x); }

template <class T, std::size_t n>
ADAFACTOR_INLINE Lanes<T, n> square_root(const Lanes<T, n>& x) {
    Lanes<T, n> y;
    ADAFACTOR_PARTS {
        for (std::size_t k = 0; k < n / kParts; ++k) y.part[part][k] = root_of(x.part[part][k]);
    }
    return y;
}

// Lanewise: the larger one; x where it is nan.
template <class T, std::size_t n>
ADAFACTOR_INLINE Lanes<T, n> at_least(const Lanes<T, n>& floor, const Lanes<T, n>& x) {
    Lanes<T, n> y;
    ADAFACTOR_PARTS y.part[part] =
        x.part[part] < floor.part[part] ? floor.part[part] : x.part[part];
    return y;
}

// The lanes of x and, counted on, of y that `lane` lists.
template <std::size_t... lane, class Vector>
ADAFACTOR_INLINE Vector lanes_of(const Vector& x, const Vector& y) {
#ifdef __clang__
    return __builtin_shufflevector(x, y, lane...);
#else
    using Index = std::conditional_t<sizeof(x[0]) == 4, std::int32_t, std::int64_t>;
    typedef Index Indices __attribute__((vector_size(sizeof(Vector))));
    return __builtin_shuffle(x, y, Indices{Index(lane)...});
#endif
}

// The vector with lane k + half in lane k; what the other half holds does not matter.
template <std::size_t half, class Vector, std::size_t... k>
ADAFACTOR_INLINE Vector upper_half(const Vector& x, std::index_sequence<k...>) {
    return lanes_of<(k + half) % sizeof...(k)...>(x, x);
}

// x and y hold groups of `size` lanes. Adds the upper half of each group to the lower; the halves
// that are left, first x's, fill one vector.
template <std::size_t size, class Vector, std::size_t... k>
ADAFACTOR_INLINE Vector folded(const Vector& x, const Vector& y, std::index_sequence<k...>) {
    constexpr std::size_t half = size / 2;
    return lanes_of<k / half * size + k % half...>(x, y) +
           lanes_of<k / half * size + k % half + half...>(x, y);
}

template <std::size_t half, class Vector>
ADAFACTOR_INLINE auto sum_vector(const Vector& x) {
    if constexpr (half == 0) {
        return x[0];
    } else {
        constexpr std::size_t n = sizeof(Vector) / sizeof(x[0]);
        return sum_vector<half / 2>(x + upper_half<half>(x, std::make_index_sequence<n>{}));
    }
}

// Adds the upper half of the parts to the lower, and so on until one is left.
template <class T, std::size_t n>
ADAFACTOR_INLINE typename Lanes<T, n>::Vector sum_parts(Lanes<T, n> x) {
    for (std::size_t half = kParts / 2; half > 0; half /= 2)
        for (std::size_t part = 0; part < half; ++part) x.part[part] += x.part[part + half];
    return x.part[0];
}

// Lane k is added to lane k + n/2, and so on by halves.
template <class T, std::size_t n>
ADAFACTOR_INLINE T sum_lanes(const Lanes<T, n>& x) {
    return sum_vector<n / kParts / 2>(sum_parts(x));
}

// The sums of four groups of lanes at once, each in the order of sum_lanes.
template <class T, std::size_t n>
ADAFACTOR_INLINE void sum_lanes(const Lanes<T, n> (&x)[4], double (&sum)[4]) {
    constexpr std::size_t width = n / kParts;
    constexpr std::make_index_sequence<width> all{};
    const auto first = folded<width>(sum_parts(x[0]), sum_parts(x[1]), all);
    const auto second = folded<width>(sum_parts(x[2]), sum_parts(x[3]), all);
    if constexpr (width == 2) {
        for (std::size_t r = 0; r < 4; ++r) sum[r] = double(r < 2 ? first[r] : second[r - 2]);
    } else {
        auto four = folded<width / 2>(first, second, all);
        if constexpr (width >= 16) four += upper_half<width / 8>(four, all);
        if constexpr (width >= 8) four += upper_half<1>(four, all);
        for (std::size_t r = 0; r < 4; ++r) sum[r] = double(four[r * (width / 4)]);
    }
}
