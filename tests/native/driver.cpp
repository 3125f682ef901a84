// Steps models of every kind of tensor by the native interface alone, on each instruction set and
// with several threads, and prints a hash of all that was written: one line, if every way gives the
// same. It is what sanitizers, valgrind and emulators run, where a Python interpreter would hide
// faults or take hours.
//
//     driver [STEPS [FAULT]]
//     driver sets                 the instruction sets of this machine
//
// With FAULT it does what the tool that it runs under has to find:
//     read      a gradient ends a few elements before its shape says
//     write     a param does
//     unset     a gradient was never written to
//     overflow  a signed integer overflows
//     race      the tasks of a loop add to one number
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "adafactor.hpp"
#include "dispatch/isa.hpp"
#include "engine/threads.hpp"

namespace {

using namespace adafactor;

std::string_view planted_fault = "";

// Integers that are the same everywhere: a linear congruence modulo 2^64 (Knuth's MMIX).
class Numbers {
public:
    explicit Numbers(std::uint64_t seed) : state_(seed) { next(), next(); }
    std::uint32_t next() {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        return std::uint32_t(state_ >> 32);
    }

private:
    std::uint64_t state_;
};

enum class Layout { contiguous, transposed, gaps, backwards, odd_bytes };

// An array in memory of its own that begins with its first byte and ends with its last, so that a
// tool sees whatever lies beside it.
class Owned {
public:
    Owned(Format format, const std::vector<std::ptrdiff_t>& shape, Layout layout, Numbers& numbers,
          std::string_view planted = "")
        : shape_(shape), strides_(shape.size()) {
        const auto item = std::ptrdiff_t(item_size(format));
        const bool reversed = layout == Layout::transposed;
        std::ptrdiff_t step = item;
        for (std::size_t k = 0; k < shape.size(); ++k) {
            const std::size_t d = reversed ? k : shape.size() - 1 - k;
            strides_[d] = step;
            step *= shape[d];
            if (layout == Layout::gaps) step += 3 * item;
            if (layout == Layout::odd_bytes) step += 1;
        }
        std::ptrdiff_t last = item;  // one past the last byte
        std::size_t size = 1;
        for (std::size_t d = 0; d < shape.size(); ++d) {
            last += strides_[d] * (shape[d] - 1);
            size *= std::size_t(shape[d]);
        }
        std::ptrdiff_t missing = 0;
        if (planted == "read" || planted == "write") missing = 5 * item;
        memory_ = static_cast<char*>(std::malloc(std::size_t(last - missing)));
        if (planted != "unset") {
            std::memset(memory_, 0, std::size_t(last - missing));
            fill(format, memory_, size, std::size_t(missing / item), numbers);
        }
        char* first = memory_;
        if (layout == Layout::backwards) {
            for (std::size_t d = 0; d < shape.size(); ++d) {
                first += strides_[d] * (shape[d] - 1);
                strides_[d] = -strides_[d];
            }
        }
        bytes_ = std::size_t(last);
        array_ = {first, format, int(shape_.size()), shape_.data(), strides_.data()};
    }
    ~Owned() { std::free(memory_); }
    Owned(const Owned&) = delete;
    Owned& operator=(const Owned&) = delete;

    const Array& array() const { return array_; }

    void add_to(std::uint64_t& hash) const {
        for (std::size_t k = 0; k < bytes_; ++k)
            hash = (hash ^ static_cast<unsigned char>(memory_[k])) * 0x100000001b3u;
    }

    // Other numbers between 2^-10 and 1 in size, or a few that are zero.
    void redraw(Numbers& numbers) {
        std::size_t size = 1;
        for (const std::ptrdiff_t n : shape_) size *= std::size_t(n);
        fill(array_.format, memory_, size, 0, numbers);
    }

private:
    // Writes the element of position k in C order, for all but the last `missing`.
    void fill(Format format, char* lowest, std::size_t size, std::size_t missing,
              Numbers& numbers) {
        std::vector<std::ptrdiff_t> at(shape_.size(), 0);
        for (std::size_t k = 0; k + missing < size; ++k) {
            std::ptrdiff_t offset = 0;
            for (std::size_t d = 0; d < shape_.size(); ++d) offset += std::abs(strides_[d]) * at[d];
            write_number(format, lowest + offset, numbers.next());
            for (std::size_t d = shape_.size(); d-- > 0;) {
                if (++at[d] < shape_[d]) break;
                at[d] = 0;
            }
        }
    }

    static void write_number(Format format, char* to, std::uint32_t bits) {
        const std::uint32_t sign = bits & 1, exponent = bits >> 1 & 7, fraction = bits >> 9;
        const auto put = [to](auto number) { std::memcpy(to, &number, sizeof(number)); };
        switch (format) {
            case Format::float32:
                return put(sign << 31 | (119 + exponent) << 23 | fraction);
            case Format::float64:
                return put(std::uint64_t(sign) << 63 | std::uint64_t(1015 + exponent) << 52 |
                           std::uint64_t(fraction) << 29);
            case Format::float16:
                return put(std::uint16_t(sign << 15 | (7 + exponent) << 10 | (fraction & 0x3ff)));
            default:
                return put(std::uint16_t(sign << 15 | (119 + exponent) << 7 | (fraction & 0x7f)));
        }
    }

    std::vector<std::ptrdiff_t> shape_, strides_;
    char* memory_;
    std::size_t bytes_;
    Array array_;
};

struct Kind {
    Format param, grad, state, m, copy;
};

constexpr Kind kKinds[] = {
    {Format::float32, Format::float32, Format::float64, Format::none, Format::none},
    {Format::float64, Format::float64, Format::float64, Format::float64, Format::none},
    {Format::float32, Format::bfloat16, Format::float32, Format::bfloat16, Format::bfloat16},
    {Format::bfloat16, Format::bfloat16, Format::float64, Format::float32, Format::none},
    {Format::float16, Format::float16, Format::float32, Format::none, Format::none},
    {Format::float32, Format::float16, Format::float64, Format::float32, Format::float16},
    {Format::float64, Format::float32, Format::float64, Format::none, Format::none},
};

// A model: tensors of every kind and layout, their state, and how they are stepped.
class Model {
public:
    Model(const std::vector<std::vector<std::ptrdiff_t>>& shapes, std::uint64_t seed)
        : numbers_(seed) {
        for (std::size_t k = 0; k < shapes.size(); ++k)
            for (const Kind& kind : kKinds) add(shapes[k], kind, seed + k);
    }

    Outcome step(int threads, bool all_or_none) {
        for (Owned* grad : grads_) grad->redraw(numbers_);
        ++t_;
        for (Tensor& tensor : tensors_) {
            tensor.hyper.beta2 = t_ == 1 ? 0 : 0.5;
            tensor.random = RandomStream::of(7, t_, RandomStream::key_of("driver"));
        }
        reports_.assign(tensors_.size(), TensorReport{});
        return adafactor::step(tensors_.data(), tensors_.size(),
                               {.propagate = false,
                                .all_or_none = all_or_none,
                                .skips = false,
                                .threads = threads,
                                .max_grad_norm = all_or_none ? 1.0 : kInfinity},
                               reports_.data());
    }

    std::uint64_t hash() const {
        std::uint64_t hash = 0xcbf29ce484222325u;
        for (const Owned& array : arrays_) array.add_to(hash);
        for (const TensorReport& report : reports_) {
            std::uint64_t bits;
            std::memcpy(&bits, &report.rms_grad, sizeof(bits));
            hash = (hash ^ bits) * 0x100000001b3u;
        }
        return hash;
    }

private:
    static constexpr double kInfinity = std::numeric_limits<double>::infinity();

    void add(const std::vector<std::ptrdiff_t>& shape, const Kind& kind, std::size_t position) {
        const auto layout = Layout(position % 5), grad_layout = Layout((position + 2) % 5);
        const bool is_faulty =
            shape.size() == 2 && shape[0] == 131 && kind.param == Format::float64;
        const auto owned = [&](Format format, const std::vector<std::ptrdiff_t>& of,
                               Layout lies = Layout::contiguous,
                               std::string_view fault = "") -> const Array& {
            return arrays_.emplace_back(format, of, lies, numbers_, fault).array();
        };
        Tensor tensor{};
        tensor.param = owned(kind.param, shape, layout,
                             is_faulty && planted_fault == "write" ? planted_fault : "");
        tensor.grad = owned(kind.grad, shape, grad_layout,
                            is_faulty && planted_fault != "write" ? planted_fault : "");
        if (!is_faulty || (planted_fault != "unset" && planted_fault != "read"))
            grads_.push_back(&arrays_.back());
        if (kind.m != Format::none) tensor.m = owned(kind.m, shape, layout);
        if (kind.copy != Format::none) tensor.copy = owned(kind.copy, shape, layout);
        tensor.state_format = kind.state;
        const int ndim = int(shape.size());
        if (ndim < 2) {
            tensor.row_axis = tensor.col_axis = -1;
            tensor.v = owned_state(kind.state, shape);
        } else {
            tensor.row_axis = ndim - 2, tensor.col_axis = ndim - 1;
            std::vector<std::ptrdiff_t> rows = shape, cols = shape;
            rows.erase(rows.end() - 1);
            cols.erase(cols.end() - 2);
            tensor.exp_row = owned_state(kind.state, rows);
            tensor.exp_col = owned_state(kind.state, cols);
        }
        tensor.hyper.lr = 0.01;
        tensor.hyper.eps_squares = 1e-30;
        tensor.hyper.eps_root = position % 2 == 0 ? 1e-30 : 1e-3;
        tensor.hyper.clip_threshold = 1;
        tensor.hyper.scale_parameter = position % 3 != 0;
        tensor.hyper.eps_scale = 1e-3;
        tensor.hyper.beta1 = 0.75;
        tensor.hyper.decay = position % 4 == 0 ? 0.01 : 0;
        tensor.stochastic = position % 2 == 0 && is_half(kind.param);
        tensors_.push_back(tensor);
    }

    // Running means before the first step, zeros.
    void* owned_state(Format format, const std::vector<std::ptrdiff_t>& shape) {
        const Owned& owned = arrays_.emplace_back(format, shape, Layout::contiguous, numbers_);
        std::memset(owned.array().data, 0, item_size(format) * size_of(owned.array()));
        return owned.array().data;
    }

    Numbers numbers_;
    std::deque<Owned> arrays_;
    std::vector<Owned*> grads_;
    std::vector<Tensor> tensors_;
    std::vector<TensorReport> reports_;
    std::int64_t t_ = 0;
};

void plant_overflow() {
    volatile int large = std::numeric_limits<int>::max();
    large = large + 1;
}

// Each task lasts, so that one thread does not take all.
void plant_race() {
    double sum = 0;
    parallel_for(std::size_t(100), 3, [&](std::size_t task, int) {
        for (volatile int k = 0; k < 30000;) k = k + 1;
        sum += double(task);
    });
    std::printf("raced to %g\n", sum);
}

}  // namespace

int main(int n_arguments, char** arguments) {
    if (n_arguments > 1 && std::string_view(arguments[1]) == "sets") {
        std::string names;
        for (const std::string& isa : available_isas()) names += (names.empty() ? "" : " ") + isa;
        std::printf("%s\n", names.c_str());
        return 0;
    }
    const int steps = n_arguments > 1 ? std::atoi(arguments[1]) : 3;
    if (n_arguments > 2) planted_fault = arguments[2];
    if (planted_fault == "overflow") plant_overflow();
    if (planted_fault == "race") plant_race();
    // Some are small matrices of a batch, some have several blocks, some a team of several threads.
    const std::vector<std::vector<std::ptrdiff_t>> shapes = {
        {},        {1},       {33},       {3000},      {1, 1},        {5, 3},     {16, 16},
        {131, 77}, {7, 1100}, {300, 260}, {3, 20, 33}, {2, 3, 9, 17}, {70, 5, 6},
    };
    const std::vector<std::vector<std::ptrdiff_t>> large = {{700, 400}, {400000}, {40, 90, 70}};
    int differing = 0;
    std::string first;
    for (const std::string& isa : available_isas()) {
        set_isa(isa);
        for (const int threads : {1, 2, 3, 5}) {
            std::string found;
            for (const auto* of : {&shapes, &large}) {
                Model model(*of, 11);
                for (int t = 0; t < steps; ++t) {
                    const Outcome outcome = model.step(threads, t % 2 == 1);
                    if (outcome.fault != Fault::none) {
                        std::printf("fault %d of tensor %zu\n", int(outcome.fault), outcome.tensor);
                        return 2;
                    }
                }
                char text[20];
                std::snprintf(text, sizeof(text), " %016llx",
                              static_cast<unsigned long long>(model.hash()));
                found += text;
            }
            if (first.empty()) first = found;
            if (found != first) {
                std::printf("%s, %d threads:%s\n", isa.c_str(), threads, found.c_str());
                ++differing;
            }
        }
    }
    std::printf("%d steps:%s\n", steps, first.c_str());
    return differing != 0;
}
