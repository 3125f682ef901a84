// Working memory of a step, kept between steps: after the first of its size a step allocates none.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <vector>

namespace adafactor {

class Scratch {
public:
    Scratch() { chunks_.push_back(allocate(0)); }

    // The calling thread's own: what its step needs to the end, and what it needs until a wave of
    // tensors is resolved.
    static Scratch& of_this_threads_step() {
        static thread_local Scratch scratch;
        return scratch;
    }
    static Scratch& of_this_threads_measure() {
        static thread_local Scratch scratch;
        return scratch;
    }

    // n objects of a trivial type on cache lines of their own, valid until reset().
    template <class T>
    T* take(std::size_t n) {
        const auto line = std::size_t(kLine);
        const std::size_t bytes = (n * sizeof(T) + line - 1) / line * line;
        if (used_ + bytes > chunks_.back().size) {
            total_ += bytes;
            chunks_.push_back(allocate(bytes));
            used_ = 0;
        }
        void* place = chunks_.back().memory.get() + used_;
        used_ += bytes;
        return static_cast<T*>(place);
    }

    // Has room for `bytes` in one chunk; what was taken is taken back.
    void reserve(std::size_t bytes) {
        used_ = 0;
        if (chunks_.size() == 1 && bytes <= chunks_.back().size) return;
        chunks_.resize(1);
        chunks_.back() = allocate(bytes);
        total_ = bytes;
    }

    // Bytes that were taken since everything was taken back last.
    std::size_t taken() const { return chunks_.size() == 1 ? used_ : total_; }

    std::size_t allocated() const { return total_; }  // bytes

    // Takes back everything: within a step. Allocates nothing where there is one chunk.
    void rewind() {
        if (chunks_.size() > 1) reset();
        used_ = 0;
    }

    // Takes back everything. Several chunks become one of their total size, unless that is large.
    void reset() {
        if (chunks_.size() > 1 || total_ > kKept) {
            const std::size_t size = total_ <= kKept ? total_ : 0;
            chunks_.clear();
            chunks_.push_back(allocate(0));
            total_ = 0;
            if (size > 0) {
                chunks_.back() = allocate(size);
                total_ = size;
            }
        }
        used_ = 0;
    }

private:
    static constexpr std::align_val_t kLine{64};
    static constexpr std::size_t kKept = std::size_t(32) << 20;

    struct Free {
        void operator()(char* memory) const { ::operator delete(memory, kLine); }
    };
    struct Chunk {
        std::unique_ptr<char, Free> memory;
        std::size_t size;
    };

    static Chunk allocate(std::size_t bytes) {
        if (bytes == 0) return {nullptr, 0};
        auto* memory = static_cast<char*>(::operator new(bytes, kLine));
        return {std::unique_ptr<char, Free>(memory), bytes};
    }

    std::vector<Chunk> chunks_;
    std::size_t used_ = 0;   // of the last chunk
    std::size_t total_ = 0;  // of all chunks
};

}  // namespace adafactor
