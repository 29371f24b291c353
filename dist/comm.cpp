// The collectives as values, and what any transport must be able to rely on: pieces counted, contiguous and of one
// dtype. Delicate: checks here see this rank only; what ranks must agree on is compared by fingerprints.
#include "dist/comm.h"

#include <algorithm>

namespace castor::dist {
namespace {

/// `whole` cut into `parts` equal runs of its elements.
std::vector<Buffer> cut(const Buffer& whole, int parts, const Collective& collective) {
  const std::int64_t count = whole.view.numel();
  if (count % parts != 0) {
    throw ShapeError(cat(collective.describe(), ": one buffer for ", parts, " ranks must hold a multiple of ", parts,
                         " elements, got ", count, "; give the pieces one by one"));
  }
  const std::int64_t each = count / parts;
  std::vector<Buffer> pieces;
  for (int i = 0; i < parts; ++i) {
    View piece;
    piece.dtype = whole.view.dtype;
    piece.ndim = 1;
    piece.size[0] = each;
    piece.stride[0] = 1;
    piece.data = static_cast<std::byte*>(whole.view.data) + static_cast<std::size_t>(i) * piece.bytes();
    pieces.emplace_back(piece).owner = whole.owner;
  }
  return pieces;
}

std::int64_t total(const std::vector<Buffer>& pieces) {
  std::int64_t count = 0;
  for (const Buffer& piece : pieces) count += piece.view.numel();
  return count;
}

Collective make(CollectiveOp op, std::string label) {
  Collective result;
  result.op = op;
  result.label = std::move(label);
  return result;
}

bool is_small_float(DType dtype) { return is_floating(dtype) && dtype_size(dtype) < 4; }

}  // namespace

std::string_view collective_name(CollectiveOp op) {
  constexpr std::string_view kNames[] = {"all_reduce", "reduce_scatter", "all_gather", "broadcast",
                                         "all_to_all", "send",           "recv",       "barrier"};
  const auto index = static_cast<std::size_t>(op);
  return index < std::size(kNames) ? kNames[index] : std::string_view("unknown");
}

Buffer::Buffer(const Tensor& tensor) {
  if (!tensor.defined()) throw ShapeError("collective: expected a tensor, got an undefined one");
  view = tensor.view();
  owner = tensor.storage();
}

Collective Collective::all_reduce(Buffer x, std::string label, ReduceOp reduce) {
  Collective result = make(CollectiveOp::kAllReduce, std::move(label));
  result.reduce = reduce;
  result.out.push_back(std::move(x));
  return result;
}

Collective Collective::reduce_scatter(std::vector<Buffer> in, Buffer out, std::string label, ReduceOp reduce,
                                      bool accumulate) {
  Collective result = make(CollectiveOp::kReduceScatter, std::move(label));
  result.in = std::move(in);
  result.out.push_back(std::move(out));
  result.reduce = reduce;
  result.accumulate = accumulate;
  return result;
}

Collective Collective::all_gather(Buffer in, std::vector<Buffer> out, std::string label) {
  Collective result = make(CollectiveOp::kAllGather, std::move(label));
  result.in.push_back(std::move(in));
  result.out = std::move(out);
  return result;
}

Collective Collective::broadcast(Buffer x, int root, std::string label) {
  Collective result = make(CollectiveOp::kBroadcast, std::move(label));
  result.out.push_back(std::move(x));
  result.root = root;
  return result;
}

Collective Collective::all_to_all(std::vector<Buffer> in, std::vector<Buffer> out, std::string label) {
  Collective result = make(CollectiveOp::kAllToAll, std::move(label));
  result.in = std::move(in);
  result.out = std::move(out);
  return result;
}

Collective Collective::send(Buffer x, int to, std::string label) {
  Collective result = make(CollectiveOp::kSend, std::move(label));
  result.in.push_back(std::move(x));
  result.root = to;
  return result;
}

Collective Collective::recv(Buffer x, int from, std::string label) {
  Collective result = make(CollectiveOp::kRecv, std::move(label));
  result.out.push_back(std::move(x));
  result.root = from;
  return result;
}

Collective Collective::barrier(std::string label) { return make(CollectiveOp::kBarrier, std::move(label)); }

DType Collective::dtype() const {
  if (!in.empty()) return in.front().view.dtype;
  return out.empty() ? DType::u8 : out.front().view.dtype;
}

Device Collective::device() const {
  if (!in.empty()) return in.front().device();
  return out.empty() ? kCpu : out.front().device();
}

std::int64_t Collective::count() const { return std::max(total(in), total(out)); }

std::string Collective::describe() const {
  std::string text(collective_name(op));
  if (!label.empty()) text += cat(" '", label, "'");
  if (op != CollectiveOp::kBarrier) text += cat(" ", dtype(), " x ", count());
  return text;
}

void Comm::prepare(Collective& collective) const {
  const int world = world_size();
  const auto many = static_cast<std::size_t>(world);
  const CollectiveOp op = collective.op;
  const bool scatters = op == CollectiveOp::kReduceScatter || op == CollectiveOp::kAllToAll;
  const bool gathers = op == CollectiveOp::kAllGather || op == CollectiveOp::kAllToAll;
  for (const auto* side : {&collective.in, &collective.out}) {
    for (const Buffer& buffer : *side) {
      if (!buffer.view.defined() || !buffer.view.is_contiguous()) {
        throw ShapeError(cat(collective.describe(), ": expected contiguous buffers; copy a strided view first"));
      }
      if (!takes(buffer.device())) {
        throw DeviceError(cat(collective.describe(), ": group ", name(), " exchanges no tensors on ", buffer.device(),
                              "; its ranks meet on the CPU"));
      }
      if (buffer.device().type != collective.device().type) {
        throw DeviceError(cat(collective.describe(), ": expected buffers on one device, got ", collective.device(),
                              " and ", buffer.device()));
      }
    }
  }
  if (scatters && collective.in.size() == 1 && world > 1) {
    collective.in = cut(Buffer(collective.in.front()), world, collective);
  }
  if (gathers && collective.out.size() == 1 && world > 1) {
    collective.out = cut(Buffer(collective.out.front()), world, collective);
  }
  const bool has_in = op != CollectiveOp::kAllReduce && op != CollectiveOp::kBroadcast && op != CollectiveOp::kRecv &&
                      op != CollectiveOp::kBarrier;
  const bool has_out = op != CollectiveOp::kSend && op != CollectiveOp::kBarrier;
  const std::size_t wanted_in = has_in ? (scatters ? many : 1) : 0;
  const std::size_t wanted_out = has_out ? (gathers ? many : 1) : 0;
  if (collective.in.size() != wanted_in || collective.out.size() != wanted_out) {
    throw ShapeError(cat(collective.describe(), ": expected ", wanted_in, " input and ", wanted_out,
                         " output pieces, got ", collective.in.size(), " and ", collective.out.size()));
  }
  if (collective.order != SumOrder::kByRank && op != CollectiveOp::kAllReduce) {
    throw ShapeError(cat(collective.describe(), ": only all_reduce has another order of sums than by rank"));
  }
  const DType dtype = collective.dtype();
  const bool widens = op == CollectiveOp::kReduceScatter && is_small_float(dtype);
  for (const Buffer& buffer : collective.in) {
    if (buffer.view.dtype != dtype) {
      throw DTypeError(cat(collective.describe(), ": expected pieces of one dtype, got ", buffer.view.dtype, " too"));
    }
  }
  for (const Buffer& buffer : collective.out) {
    if (buffer.view.dtype != dtype && !(widens && buffer.view.dtype == DType::f32)) {
      throw DTypeError(cat(collective.describe(), ": expected an output of ", dtype, widens ? " or f32" : "", ", got ",
                           buffer.view.dtype));
    }
  }
  if (collective.reduce == ReduceOp::kMean) {
    if (!is_floating(dtype)) throw DTypeError(cat(collective.describe(), ": only floats have a mean"));
    if (collective.accumulate || collective.order != SumOrder::kByRank) {
      throw ShapeError(cat(collective.describe(),
                           ": a mean is of all terms at once, in the order of ranks; sum them "
                           "and divide the sum"));
    }
  }
  if (dtype == DType::boolean && collective.reduce == ReduceOp::kSum &&
      (op == CollectiveOp::kAllReduce || op == CollectiveOp::kReduceScatter)) {
    throw DTypeError(cat(collective.describe(), ": bool has no sum; use max (any) or min (all)"));
  }
  const auto own = static_cast<std::size_t>(rank());
  const bool own_piece_differs =
      (op == CollectiveOp::kReduceScatter && collective.in[own].view.numel() != collective.out[0].view.numel()) ||
      (op == CollectiveOp::kAllGather && collective.in[0].view.numel() != collective.out[own].view.numel()) ||
      (op == CollectiveOp::kAllToAll && collective.in[own].view.numel() != collective.out[own].view.numel());
  if (own_piece_differs) {
    throw ShapeError(cat(collective.describe(), ": this rank's own piece has different counts at input and output"));
  }
  const bool to_peer = op == CollectiveOp::kSend || op == CollectiveOp::kRecv;
  if ((to_peer || op == CollectiveOp::kBroadcast) &&
      (collective.root < 0 || collective.root >= world || (to_peer && collective.root == rank()))) {
    throw ShapeError(cat(collective.describe(), ": expected ", to_peer ? "another rank" : "a rank", " from 0 to ",
                         world - 1, ", got ", collective.root));
  }
}

Work Comm::start(Collective collective) {
  prepare(collective);
  return submit(std::move(collective));
}

void Comm::run(Collective collective) {
  prepare(collective);
  execute(std::move(collective));
}

void Comm::all_reduce(Buffer x, std::string label, ReduceOp reduce) {
  run(Collective::all_reduce(std::move(x), std::move(label), reduce));
}
void Comm::reduce_scatter(Buffer in, Buffer out, std::string label, ReduceOp reduce) {
  run(Collective::reduce_scatter({std::move(in)}, std::move(out), std::move(label), reduce));
}
void Comm::all_gather(Buffer in, Buffer out, std::string label) {
  run(Collective::all_gather(std::move(in), {std::move(out)}, std::move(label)));
}
void Comm::broadcast(Buffer x, int root, std::string label) {
  run(Collective::broadcast(std::move(x), root, std::move(label)));
}
void Comm::all_to_all(Buffer in, Buffer out, std::string label) {
  run(Collective::all_to_all({std::move(in)}, {std::move(out)}, std::move(label)));
}
void Comm::send(Buffer x, int to, std::string label) { run(Collective::send(std::move(x), to, std::move(label))); }
void Comm::recv(Buffer x, int from, std::string label) { run(Collective::recv(std::move(x), from, std::move(label))); }
void Comm::barrier(std::string label) { run(Collective::barrier(std::move(label))); }

}  // namespace castor::dist
