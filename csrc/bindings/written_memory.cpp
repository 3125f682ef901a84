#include "bindings/written_memory.hpp"

#include <algorithm>
#include <iterator>
#include <tuple>
#include <utility>

namespace adafactor {
namespace {

bool lies_before(const WrittenMemory::Piece& a, const WrittenMemory::Piece& b) {
    return a.low < b.low;
}

void require_disjoint_pieces(const WrittenMemory::Piece& a, const WrittenMemory::Piece& b) {
    const auto& [earlier, later] =
        std::minmax(a, b, [](const auto& x, const auto& y) { return x.position < y.position; });
    require_no_shared_byte(later.object, later.name, earlier.object, earlier.name);
}

}  // namespace

WrittenMemory::Piece::Piece(py::handle holder, const Array& array, const Name& its_name)
    : object(holder), name(its_name) {
    std::tie(low, high) = extent(array);
}

void WrittenMemory::add(std::vector<Piece> pieces) {
    const std::size_t n_old = pieces_.size();
    for (std::size_t k = 0; k < pieces.size(); ++k) pieces[k].position = n_old + k;
    std::sort(pieces.begin(), pieces.end(), lies_before);

    std::vector<Piece> all;
    all.reserve(n_old + pieces.size());
    std::merge(pieces_.begin(), pieces_.end(), pieces.begin(), pieces.end(),
               std::back_inserter(all), lies_before);
    std::vector<Cluster> clusters;
    clusters.reserve(all.size());
    for (std::size_t k = 0; k < all.size(); ++k) {
        const Piece& piece = all[k];
        if (clusters.empty() || clusters.back().high <= piece.low) {
            clusters.push_back({piece.low, piece.high, k});
            continue;
        }
        Cluster& cluster = clusters.back();
        for (std::size_t other = cluster.first; other < k; ++other) {
            const bool is_new = std::max(piece.position, all[other].position) >= n_old;
            if (is_new && piece.low < all[other].high) require_disjoint_pieces(all[other], piece);
        }
        cluster.high = std::max(cluster.high, piece.high);
    }
    pieces_ = std::move(all);
    clusters_ = std::move(clusters);
}

void WrittenMemory::require_disjoint(py::handle object, const Array& array,
                                     const Name& name) const {
    const auto [low, high] = extent(array);
    auto cluster =
        std::lower_bound(clusters_.begin(), clusters_.end(), high,
                         [](const Cluster& one, const char* end) { return one.low < end; });
    for (; cluster != clusters_.begin() && low < std::prev(cluster)->high; --cluster) {
        const std::size_t end = cluster == clusters_.end() ? pieces_.size() : cluster->first;
        for (std::size_t k = std::prev(cluster)->first; k < end; ++k) {
            const Piece& piece = pieces_[k];
            if (low < piece.high && piece.low < high)
                require_no_shared_byte(object, name, piece.object, piece.name);
        }
    }
}

}  // namespace adafactor
