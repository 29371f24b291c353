// Pairing tensors by name, and comparing each pair block by block.
#include "formats/compare_tensors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <utility>

#include "core/base/error.h"

namespace castor::formats {
namespace {

constexpr std::uint64_t kBlockElements = std::uint64_t{1} << 18;

using Key = std::pair<std::string, std::string>;  // role, with "" for weights, and name
using Selection = std::map<Key, const SourceTensor*>;

std::string role_class(const std::string& role) { return is_weight_role(role) ? "" : role; }

// The tensors of a source that take part.
Selection select(const TensorSource& source, const TensorSource& other, const CompareOptions& options,
                 std::size_t& skipped) {
  const std::optional<std::string> role =
      options.role ? std::optional<std::string>(role_class(*options.role)) : std::nullopt;
  Selection selection;
  const bool weights_only = !source.has_roles || !other.has_roles;
  for (const SourceTensor& tensor : source.tensors) {
    const std::string own = role_class(tensor.role);
    if (!source.has_roles) {
      selection[{"", tensor.name}] = &tensor;
    } else if (!role) {
      if (weights_only && !own.empty()) {
        ++skipped;
      } else {
        selection[{own, tensor.name}] = &tensor;
      }
    } else if (own == *role) {
      // A file without roles gives its tensors under the name alone.
      selection[{weights_only ? "" : own, tensor.name}] = &tensor;
    }
  }
  if (source.has_roles && weights_only && role == "master") {
    for (const SourceTensor& tensor : source.tensors) {
      if (is_weight_role(tensor.role)) selection.try_emplace({"", tensor.name}, &tensor);
    }
  }
  return selection;
}

// Further names for tensors that were selected under their own.
std::map<std::string, const SourceTensor*> selected_aliases(const TensorSource& source, const Selection& selection) {
  std::map<std::string, const SourceTensor*> aliases;
  for (const auto& [alias, name] : source.aliases) {
    const auto found = selection.find({"", name});
    if (found != selection.end()) aliases[alias] = found->second;
  }
  return aliases;
}

struct Pairs {
  struct Pair {
    std::string name, role;
    const SourceTensor* a;
    const SourceTensor* b;
  };
  std::vector<Pair> pairs;
  std::vector<TensorDifference> differences;
  std::size_t skipped = 0;
  std::size_t unnoted_aliases = 0;
};

// Adds what `from` has and `to` has not.
void add_missing(Pairs& result, const Selection& from, const Selection& to,
                 const std::map<std::string, const SourceTensor*>& aliases_of_to, bool from_is_a) {
  for (const auto& [key, tensor] : from) {
    if (to.contains(key)) continue;
    const auto alias = key.first.empty() ? aliases_of_to.find(key.second) : aliases_of_to.end();
    if (alias != aliases_of_to.end()) {
      const SourceTensor* other = alias->second;
      result.pairs.push_back({key.second, tensor->role, from_is_a ? tensor : other, from_is_a ? other : tensor});
    } else {
      result.differences.push_back({from_is_a ? TensorDifference::Kind::only_in_a : TensorDifference::Kind::only_in_b,
                                    key.second, tensor->role, from_is_a ? tensor : nullptr,
                                    from_is_a ? nullptr : tensor});
    }
  }
}

// Aliases of `from` that `to` knows under no name, or as another tensor.
void add_aliases(Pairs& result, const std::map<std::string, const SourceTensor*>& from, const Selection& to,
                 const std::map<std::string, const SourceTensor*>& aliases_of_to, bool both_have_roles,
                 bool from_is_a) {
  for (const auto& [alias, tensor] : from) {
    if (to.contains({"", alias})) continue;  // paired from the other side
    const auto other = aliases_of_to.find(alias);
    if (other != aliases_of_to.end()) {
      // Tied on both sides; the tensors behind it are compared again only if they are not the pair that is compared
      // anyway.
      if (from_is_a && other->second->name != tensor->name) {
        result.pairs.push_back({alias, tensor->role, tensor, other->second});
      }
    } else if (both_have_roles) {
      result.differences.push_back({from_is_a ? TensorDifference::Kind::only_in_a : TensorDifference::Kind::only_in_b,
                                    alias, tensor->role, from_is_a ? tensor : nullptr, from_is_a ? nullptr : tensor});
    } else {
      ++result.unnoted_aliases;
    }
  }
}

Pairs pair_up(const TensorSource& a, const TensorSource& b, const CompareOptions& options) {
  Pairs result;
  const Selection in_a = select(a, b, options, result.skipped), in_b = select(b, a, options, result.skipped);
  if (options.role && in_a.empty() && in_b.empty()) {
    throw FormatError(cat("compare: neither ", a.path, " nor ", b.path, " has a tensor of the role ", *options.role),
                      a.path, 0);
  }
  const auto aliases_a = selected_aliases(a, in_a), aliases_b = selected_aliases(b, in_b);
  for (const auto& [key, tensor] : in_a) {
    const auto other = in_b.find(key);
    if (other != in_b.end()) result.pairs.push_back({key.second, tensor->role, tensor, other->second});
  }
  add_missing(result, in_a, in_b, aliases_b, true);
  add_missing(result, in_b, in_a, aliases_a, false);
  const bool both = a.has_roles && b.has_roles;
  add_aliases(result, aliases_a, in_b, aliases_b, both, true);
  add_aliases(result, aliases_b, in_a, aliases_a, both, false);
  return result;
}

void to_f64(const std::byte* bytes, DType dtype, std::size_t count, std::vector<double>& out) {
  out.resize(count);
  visit_dtype(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    for (std::size_t i = 0; i < count; ++i) {
      if constexpr (std::is_same_v<T, bool>) {
        out[i] = static_cast<double>(static_cast<unsigned char>(bytes[i]));  // not every byte is a bool
      } else {
        T value;
        std::memcpy(&value, bytes + i * sizeof(T), sizeof(T));
        out[i] = static_cast<double>(load(value));
      }
    }
  });
}

// Compares one pair's blocks and adds up.
class PairComparison {
 public:
  PairComparison(const SourceTensor& a, const SourceTensor& b, double tolerance)
      : a_(a), b_(b), size_a_(dtype_size(a.dtype)), size_b_(dtype_size(b.dtype)), tolerance_(tolerance) {}

  ValueDifference run(const std::function<void(std::uint64_t)>& read) {
    const ByteSource from_a = a_.open(), from_b = b_.open();
    const std::uint64_t total = a_.numel();
    for (std::uint64_t begin = 0; begin < total; begin += kBlockElements) {
      const std::size_t count = static_cast<std::size_t>(std::min(kBlockElements, total - begin));
      bytes_a_.resize(count * size_a_);
      bytes_b_.resize(count * size_b_);
      from_a(begin * size_a_, bytes_a_);
      from_b(begin * size_b_, bytes_b_);
      if (a_.dtype != b_.dtype || bytes_a_ != bytes_b_) compare_block(begin, count);
      if (read) read(bytes_a_.size() + bytes_b_.size());
    }
    return difference_;
  }

 private:
  void compare_block(std::uint64_t begin, std::size_t count) {
    const bool same_dtype = a_.dtype == b_.dtype;
    to_f64(bytes_a_.data(), a_.dtype, count, values_a_);
    to_f64(bytes_b_.data(), b_.dtype, count, values_b_);
    for (std::size_t i = 0; i < count; ++i) {
      if (same_dtype && std::memcmp(&bytes_a_[i * size_a_], &bytes_b_[i * size_a_], size_a_) == 0) continue;
      const double x = values_a_[i], y = values_b_[i];
      if (!same_dtype && (x == y || (std::isnan(x) && std::isnan(y)))) continue;
      double absolute = std::abs(x - y);
      if (same_dtype && a_.dtype == DType::i64) absolute = integer_distance(i);
      if (std::isnan(absolute)) absolute = x == y ? 0 : std::numeric_limits<double>::infinity();
      const double largest = std::max(std::abs(x), std::abs(y));
      const double relative = absolute == 0 ? 0 : std::isfinite(absolute) ? absolute / largest : absolute;
      difference_.max_absolute = std::max(difference_.max_absolute, absolute);
      difference_.max_relative = std::max(difference_.max_relative, relative);
      if (tolerance_ > 0 && absolute <= tolerance_ * std::max(1.0, largest) && std::isfinite(absolute)) continue;
      if (difference_.differing++ == 0) difference_.first = begin + i;
    }
  }

  // f64 does not hold every i64.
  double integer_distance(std::size_t i) const {
    std::int64_t x = 0, y = 0;
    std::memcpy(&x, &bytes_a_[i * 8], 8);
    std::memcpy(&y, &bytes_b_[i * 8], 8);
    const auto distance = static_cast<std::uint64_t>(std::max(x, y)) - static_cast<std::uint64_t>(std::min(x, y));
    return static_cast<double>(distance);
  }

  const SourceTensor& a_;
  const SourceTensor& b_;
  std::size_t size_a_, size_b_;
  double tolerance_;
  std::vector<std::byte> bytes_a_, bytes_b_;
  std::vector<double> values_a_, values_b_;
  ValueDifference difference_;
};

}  // namespace

CompareReport compare_sources(const TensorSource& a, const TensorSource& b, const CompareOptions& options) {
  Pairs pairs = pair_up(a, b, options);
  CompareReport report;
  report.differences = std::move(pairs.differences);
  report.skipped = pairs.skipped;
  report.unnoted_aliases = pairs.unnoted_aliases;
  std::uint64_t done = 0;
  const auto read = [&](std::uint64_t bytes) {
    done += bytes;
    if (options.progress) options.progress(done);
  };
  for (const Pairs::Pair& pair : pairs.pairs) {
    if (pair.a->shape != pair.b->shape) {
      report.differences.push_back({TensorDifference::Kind::shape, pair.name, pair.role, pair.a, pair.b});
      continue;
    }
    ++report.compared;
    report.other_dtypes += pair.a->dtype != pair.b->dtype ? 1 : 0;
    const ValueDifference values = PairComparison(*pair.a, *pair.b, options.tolerance).run(read);
    if (values.differing > 0) {
      report.differences.push_back({TensorDifference::Kind::values, pair.name, pair.role, pair.a, pair.b, values});
    }
  }
  std::sort(report.differences.begin(), report.differences.end(),
            [](const auto& x, const auto& y) { return std::tie(x.role, x.name) < std::tie(y.role, y.name); });
  return report;
}

std::uint64_t bytes_to_compare(const TensorSource& a, const TensorSource& b, const CompareOptions& options) {
  std::uint64_t total = 0;
  for (const Pairs::Pair& pair : pair_up(a, b, options).pairs) {
    if (pair.a->shape == pair.b->shape) total += pair.a->bytes() + pair.b->bytes();
  }
  return total;
}

}  // namespace castor::formats
