// Where the numbers of each format lie in a row, and how vectors of them are read and written.
//
// The formats have types: float, double, Bfloat16, Float16, Split, and None where there is no
// array. Whatever the format, read(row, j) and write(row, j, x) are for a whole vector of elements
// from the j-th on; read_first and write_first for the first n of one, with zeros behind them.

struct None {};

template <class T>  // what the machine computes with
constexpr bool kIsNative = std::is_same_v<T, float> || std::is_same_v<T, double>;

template <class T>  // what a float is rounded to
constexpr bool kIsRounded = std::is_same_v<T, Bfloat16> || std::is_same_v<T, Float16>;

// Halves count as floats.
template <class T>
using FloatOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
constexpr Format kFormat = std::is_same_v<T, float>      ? Format::float32
                           : std::is_same_v<T, double>   ? Format::float64
                           : std::is_same_v<T, Bfloat16> ? Format::bfloat16
                           : std::is_same_v<T, Float16>  ? Format::float16
                           : std::is_same_v<T, Split>    ? Format::split
                                                         : Format::none;

constexpr std::ptrdiff_t item_bytes(Format format) {
    return format == Format::float64 ? 8 : format == Format::float32 ? 4 : 2;
}

// Calls body(the format's type, one of those listed).
template <class First, class... Others, class Body>
ADAFACTOR_INLINE auto with_type(Format format, const Body& body) {
    if constexpr (sizeof...(Others) > 0) {
        if (format != kFormat<First>) return with_type<Others...>(format, body);
    }
    return body(First());
}

// The types of any array's numbers, of a gradient's, and of those that are read as floats. A format
// of its own is added here.
template <class Body>
ADAFACTOR_INLINE auto with_any_type(Format format, const Body& body) {
    return with_type<float, double, Bfloat16, Float16, Split>(format, body);
}
template <class Body>
ADAFACTOR_INLINE auto with_grad_type(Format format, const Body& body) {
    return with_type<float, double, Bfloat16, Float16>(format, body);
}
template <class Body>
ADAFACTOR_INLINE auto with_float_type(Format format, const Body& body) {
    return with_type<float, Bfloat16, Float16, Split>(format, body);
}

template <class T>
struct Row {
    char* data;
    std::ptrdiff_t low;  // as in Block

    template <class U>
    ADAFACTOR_INLINE U* at(std::size_t j) const {
        return reinterpret_cast<U*>(data + j * sizeof(T));
    }
    template <class U>  // of a split number, where its lower half is
    ADAFACTOR_INLINE U* lower(U* upper) const {
        return reinterpret_cast<U*>(reinterpret_cast<std::intptr_t>(upper) + low);
    }
};

template <class T>
ADAFACTOR_INLINE Row<T> row_of(const Block& block, std::size_t i) {
    return {block.data + std::ptrdiff_t(i) * block.stride, block.low};
}

// Rows i to i + R - 1.
template <class T, std::size_t R>
ADAFACTOR_INLINE void rows_of(const Block& block, std::size_t i, Row<T> (&row)[R]) {
    // One by one, and each in a way that the compiler knows nothing of: GCC would multiply four row
    // numbers in a vector, which takes longer than the row, or give two rows a register to share.
    row[0] = row_of<T>(block, i);
    for (std::size_t r = 1; r < R; ++r) {
        row[r] = {row[r - 1].data + block.stride, block.low};
        __asm__("" : "+r"(row[r].data));
    }
}

// The part of a block from element (i, j) on; of no array, nothing.
ADAFACTOR_INLINE Block part_of(const Block& block, std::size_t i, std::size_t j, std::size_t rows,
                               std::size_t cols) {
    if (block.format == Format::none) return block;
    return {block.data + std::ptrdiff_t(i) * block.stride +
                std::ptrdiff_t(j) * item_bytes(block.format),
            block.stride,
            rows,
            cols,
            block.format,
            block.low,
            block.walk};
}

// Halves of `row` from the j-th on, which load(from, parts) loads the vectors of, as floats.
template <class T, class Load>
ADAFACTOR_INLINE Lanes<float> widened(const Row<T>& row, std::size_t j, const Load& load) {
    const Half* const half = row.template at<const Half>(j);
    Halves upper[kParts], lower[kParts];
    load(half, upper);
    if constexpr (std::is_same_v<T, Split>) load(row.lower(half), lower);
    Lanes<float> x;
    ADAFACTOR_PARTS {
        if constexpr (std::is_same_v<T, Split>)
            x.part[part] = Split::joined(upper[part], lower[part]);
        else
            x.part[part] = T::widened(upper[part]);
    }
    return x;
}

// Floats as halves, which store(to, parts) stores the vectors of. `random`: the words of each part
// that they are rounded by, or null to round to nearest.
template <class T, class Store>
ADAFACTOR_INLINE void narrow(const Row<T>& row, std::size_t j, const Lanes<float>& x,
                             const Words* random, const Store& store) {
    Half* const half = row.template at<Half>(j);
    Halves upper[kParts], lower[kParts];
    ADAFACTOR_PARTS {
        const Floats& number = x.part[part];
        if constexpr (std::is_same_v<T, Split>) {
            upper[part] = Split::upper_of(number);
            lower[part] = Split::lower_of(number);
        } else {
            upper[part] =
                random == nullptr ? T::nearest(number) : T::stochastic(number, random[part]);
        }
    }
    store(half, upper);
    if constexpr (std::is_same_v<T, Split>) store(row.lower(half), lower);
}

template <class Acc, class T>
ADAFACTOR_INLINE Lanes<Acc> read_first(const Row<T>& row, std::size_t j, std::size_t n) {
    if constexpr (kIsNative<T>) {
        return load_first<Acc>(row.template at<const T>(j), n);
    } else {
        const Lanes<float> x = widened(
            row, j, [n](const Half* from, Halves(&parts)[kParts]) __attribute__((always_inline)) {
                load_parts(from, n, parts);
            });
        if constexpr (std::is_same_v<Acc, float>) return x;
        float lane[kLanes<float>];
        store(lane, x);
        return load<Acc>(lane);
    }
}

template <class Acc, class T>
ADAFACTOR_INLINE Lanes<Acc> read(const Row<T>& row, std::size_t j) {
    if constexpr (kIsNative<T>)
        return load<Acc>(row.template at<const T>(j));
    else if constexpr (std::is_same_v<Acc, double>)
        return read_first<Acc>(row, j, kLanes<double>);
    else
        return widened(row, j,
                       [](const Half* from, Halves(&parts)[kParts]) __attribute__((always_inline)) {
                           ADAFACTOR_PARTS parts[part] =
                               *reinterpret_cast<const HalvesAnywhere*>(from + part * kWidth);
                       });
}

template <class T, class Acc>
ADAFACTOR_INLINE void write(const Row<T>& row, std::size_t j, const Lanes<Acc>& x,
                            const Words* random = nullptr) {
    if constexpr (kIsNative<T>)
        store(row.template at<T>(j), x);
    else if constexpr (!std::is_same_v<T, None>)
        narrow(row, j, x, random,
               [](Half* to, const Halves(&parts)[kParts]) __attribute__((always_inline)) {
                   ADAFACTOR_PARTS* reinterpret_cast<HalvesAnywhere*>(to + part * kWidth) =
                       parts[part];
               });
}

template <class T, class Acc>
ADAFACTOR_INLINE void write_first(const Row<T>& row, std::size_t j, std::size_t n,
                                  const Lanes<Acc>& x, const Words* random = nullptr) {
    if constexpr (kIsNative<T>)
        store_first(row.template at<T>(j), x, n);
    else if constexpr (!std::is_same_v<T, None>)
        narrow(row, j, x, random,
               [n](Half* to, const Halves(&parts)[kParts])
                   __attribute__((always_inline)) { store_parts(to, n, parts); });
}
