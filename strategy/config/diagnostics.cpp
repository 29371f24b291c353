// The report of mistakes, and the distance between names behind "did you mean".
//
// Delicate: names come from files that anyone may have written, so the distance is only computed for names of sane
// length: it takes their product in time.
#include "strategy/config/diagnostics.h"

#include <algorithm>
#include <cctype>

#include "core/base/error.h"
#include "core/base/json.h"

namespace castor::strategy {
namespace {

constexpr std::size_t kLongestName = 100;
constexpr std::size_t kMostListed = 100;

std::string folded(std::string_view name) {
  std::string out(name);
  for (char& c : out) c = c == '-' ? '_' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

/// Optimal string alignment distance (Damerau 1964 with each place edited once).
std::size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<std::size_t> two_up;
  std::vector<std::size_t> up(b.size() + 1);
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) up[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({up[j] + 1, row[j - 1] + 1, up[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = std::min(row[j], two_up[j - 2] + 1);
    }
    two_up = std::exchange(up, row);
  }
  return up[b.size()];
}

}  // namespace

void Diagnostics::add(std::string path, const SourceMark& mark, std::string text) {
  Mistake mistake{std::move(path), mark.text(), std::move(text)};
  const auto same = [&mistake](const Mistake& other) {
    return other.path == mistake.path && other.source == mistake.source && other.text == mistake.text;
  };
  // Looking back over the last few is enough: a value that is checked twice is checked twice in a row.
  const std::size_t recent = std::min<std::size_t>(mistakes_.size(), kMostListed);
  if (std::any_of(mistakes_.end() - static_cast<std::ptrdiff_t>(recent), mistakes_.end(), same)) return;
  mistakes_.push_back(std::move(mistake));
}

std::string Diagnostics::report(std::string_view what) const {
  std::string out = cat(mistakes_.size(), mistakes_.size() == 1 ? " mistake" : " mistakes");
  if (!what.empty()) out += cat(" in ", what);
  out += ':';
  for (std::size_t i = 0; i < std::min(mistakes_.size(), kMostListed); ++i) {
    const Mistake& mistake = mistakes_[i];
    out += "\n  ";
    if (!mistake.path.empty()) out += mistake.path;
    if (!mistake.source.empty()) out += cat(mistake.path.empty() ? "" : " ", "(", mistake.source, ")");
    if (!mistake.path.empty() || !mistake.source.empty()) out += ": ";
    out += mistake.text;
  }
  if (mistakes_.size() > kMostListed) out += cat("\n  ... and ", mistakes_.size() - kMostListed, " more");
  return out;
}

void Diagnostics::throw_if_any(std::string_view what) const {
  if (!empty()) throw ConfigError(report(what), mistakes_.front().path);
}

std::string nearest_name(std::string_view name, std::span<const std::string> candidates) {
  if (name.empty() || name.size() > kLongestName) return "";
  const std::string wanted = folded(name);
  std::string best;
  std::size_t best_distance = std::max<std::size_t>(1, wanted.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    const std::size_t gap = std::max(candidate.size(), name.size()) - std::min(candidate.size(), name.size());
    if (candidate.size() > kLongestName || gap >= best_distance) continue;
    const std::size_t distance = edit_distance(wanted, folded(candidate));
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

std::string suggest_name(std::string_view name, std::span<const std::string> candidates) {
  const std::string nearest = nearest_name(name, candidates);
  if (!nearest.empty()) return cat("did you mean ", quote_json(nearest), "?");
  std::string out;
  for (const std::string& candidate : candidates) out += cat(out.empty() ? "known: " : ", ", candidate);
  return out;
}

}  // namespace castor::strategy
