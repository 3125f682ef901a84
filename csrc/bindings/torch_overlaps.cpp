#include "bindings/torch_overlaps.hpp"

#include <algorithm>

#include "bindings/buffers.hpp"

namespace adafactor {

std::size_t Overlaps::first_in(const std::vector<GatheredTensor>& tensors) {
    now_.clear();
    for (std::size_t k = 0; k < tensors.size(); ++k) {
        for (int i = 0; i < tensors[k].n_written; ++i) {
            const auto [low, high] = tensors[k].written[i];
            if (low < high) now_.push_back({low, high, k});
        }
    }
    // Tensors that write nothing leave no piece, and count all the same.
    if (n_tensors_ == tensors.size() && now_ == given_) return first_;
    n_tensors_ = tensors.size();
    given_.swap(now_);
    sorted_ = given_;
    std::sort(sorted_.begin(), sorted_.end(),
              [](const Piece& a, const Piece& b) { return a.low < b.low; });
    first_ = first_in_itself_ = tensors.size();
    are_disjoint_ = true;
    // Each piece is compared with the one before it that reaches furthest, which may hide another
    // pair: so those before the first tensor found are looked at again, until there is none.
    while (lower_first()) are_disjoint_ = false;
    return first_;
}

// Makes first_ less where a tensor before it shares bytes with another.
bool Overlaps::lower_first() {
    const std::size_t limit = first_;
    const Piece* furthest = nullptr;
    for (const Piece& piece : sorted_) {
        if (piece.tensor >= limit) continue;
        if (furthest != nullptr && piece.low < furthest->high) {
            if (piece.tensor == furthest->tensor)
                first_in_itself_ = std::min(first_in_itself_, piece.tensor);
            first_ = std::min(first_, std::max(piece.tensor, furthest->tensor));
        }
        if (furthest == nullptr || piece.high > furthest->high) furthest = &piece;
    }
    return first_ < limit;
}

bool Overlaps::is_written(const Array& array) const {
    const auto [low, high] = extent(array);
    if (low == high) return false;
    const auto above =
        std::lower_bound(sorted_.begin(), sorted_.end(), high,
                         [](const Piece& piece, const char* end) { return piece.low < end; });
    // Where pieces overlap each other, one that begins earlier may reach further.
    auto piece = are_disjoint_ && above != sorted_.begin() ? std::prev(above) : sorted_.begin();
    const char* const begin = low;  // Clang's OpenMP captures no structured binding
    return std::any_of(piece, above, [=](const Piece& one) { return one.high > begin; });
}

}  // namespace adafactor
