// One walk over all begins and ends, in order of time.
#include "core/device/idle_time.h"

#include <algorithm>
#include <array>
#include <iomanip>
#include <sstream>
#include <vector>

namespace castor {
namespace {

enum Kind { kComputing, kExchange, kCopy, kHostOp, kKinds };

/// What a span means to the queue; kKinds: nothing.
Kind kind_of(const Trace::TimedSpan& span, const std::string& queue) {
  const std::string_view category = span.category;
  if (category == "op") return span.lane == queue ? kComputing : kHostOp;
  if (category == "collective") return kExchange;
  return category == "copy" ? kCopy : kKinds;
}

struct Edge {
  double at;
  Kind kind;
  int change;  // 1 or -1
};

}  // namespace

std::string idle_text(const IdleTime& idle) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(1) << idle.total() * 1e3 << " of " << idle.stretch * 1e3 << " ms (exchange "
      << idle.exchange * 1e3 << ", host " << idle.host * 1e3 << ", copies " << idle.copies * 1e3 << ", other "
      << idle.other * 1e3 << ")";
  return out.str();
}

IdleTime idle_time(std::span<const Trace::TimedSpan> spans, Device device, std::string_view stretch) {
  const auto found =
      std::find_if(spans.begin(), spans.end(), [&](const Trace::TimedSpan& span) { return span.name == stretch; });
  IdleTime idle;
  if (found == spans.end()) return idle;
  idle.stretch = found->end - found->begin;
  std::vector<Edge> edges{{found->end, kKinds, 0}};
  for (const Trace::TimedSpan& span : spans) {
    const Kind kind = kind_of(span, to_string(device));
    if (kind == kKinds || span.end <= found->begin || span.begin >= found->end) continue;
    edges.push_back({std::max(span.begin, found->begin), kind, 1});
    edges.push_back({std::min(span.end, found->end), kind, -1});
  }
  std::sort(edges.begin(), edges.end(), [](const Edge& a, const Edge& b) { return a.at < b.at; });
  std::array<int, kKinds + 1> open{};
  double from = found->begin;
  for (const Edge& edge : edges) {
    const double time = edge.at - from;
    if (open[kComputing] == 0) {
      double& waited = open[kExchange] > 0 ? idle.exchange
                       : open[kHostOp] > 0 ? idle.host
                       : open[kCopy] > 0   ? idle.copies
                                           : idle.other;
      waited += time;
    }
    open[edge.kind] += edge.change;
    from = edge.at;
  }
  return idle;
}

}  // namespace castor
