// Contributions are pseudo-random and of mixed sizes, so that a sum in another order, or a piece in another place,
// differs in its bits. Delicate: the reference adds in f32 in order of ranks, as the contract says.
#include "tests/dist/collective_cases.h"

#include <cmath>
#include <cstring>

#include <doctest/doctest.h>

#include "core/ops/cast.h"

namespace castor::test {
namespace {

using dist::Collective;
using dist::Comm;
using dist::ReduceOp;

/// Element i of rank r's contribution: between -1000 and 1000, with exponents that make sums inexact.
float value_at(int rank, std::int64_t i) {
  const auto mixed = static_cast<std::uint32_t>(i * 2654435761LL + rank * 40503LL + 12345) * 2246822519u;
  return (static_cast<float>(mixed >> 8) / 8388608.0f - 1.0f) * std::ldexp(1.0f, static_cast<int>(mixed % 20) - 10);
}

template <class T>
Tensor contribution(int rank, std::int64_t count, std::int64_t start = 0) {
  std::vector<T> values;
  for (std::int64_t i = 0; i < count; ++i) values.push_back(store<T>(value_at(rank, start + i)));
  return Tensor::from_values(values, {count});
}

template <class T>
std::vector<T> expected_sum(int ranks, std::int64_t count, std::int64_t start = 0) {
  std::vector<T> sums;
  for (std::int64_t i = 0; i < count; ++i) {
    auto sum = load(store<T>(value_at(0, start + i)));
    for (int r = 1; r < ranks; ++r) sum += load(store<T>(value_at(r, start + i)));
    sums.push_back(store<T>(sum));
  }
  return sums;
}

template <class T>
bool same_bits(const Tensor& tensor, const std::vector<T>& expected) {
  return tensor.numel() == static_cast<std::int64_t>(expected.size()) &&
         (expected.empty() || std::memcmp(tensor.data<T>(), expected.data(), expected.size() * sizeof(T)) == 0);
}

template <class T>
void check_sums(Comm& comm) {
  const int world = comm.world_size();
  for (const std::int64_t count : {0, 1, 7, 4096, 4099, 70'001, 300'007}) {
    CAPTURE(count);
    const Tensor x = contribution<T>(comm.rank(), count);
    comm.all_reduce(x, "x");
    CHECK(same_bits(x, expected_sum<T>(world, count)));

    const std::int64_t each = count / 3;
    const Tensor whole = contribution<T>(comm.rank(), each * world);
    const Tensor part = Tensor::empty({each}, DTypeOf<T>::value);
    comm.reduce_scatter(whole, part, "part");
    CHECK(same_bits(part, expected_sum<T>(world, each, each * comm.rank())));
  }
}

/// Sums behind a single byte: no element of any stream lies where its type would have it.
void check_unaligned(Comm& comm) {
  const Tensor byte = Tensor::zeros({1}, DType::u8);
  const Tensor bytes = Tensor::empty({comm.world_size()}, DType::u8);
  comm.all_gather(byte, bytes, "bytes");
  const Tensor x = contribution<float>(comm.rank(), 300'007);
  comm.all_reduce(x, "x");
  CHECK(same_bits(x, expected_sum<float>(comm.world_size(), 300'007)));
  for (int i = 0; i < 3; ++i) comm.all_gather(byte, bytes, "bytes");
}

void check_accumulation(Comm& comm) {
  // Two micro-steps into one f32 accumulator: as if 2 * W ranks had been there.
  const int world = comm.world_size();
  const std::int64_t each = 40'000;
  const Tensor sum = Tensor::zeros({each}, DType::f32);
  for (int step = 0; step < 2; ++step) {
    const Tensor gradient = contribution<BFloat16>(step * world + comm.rank(), each * world);
    Collective collective = Collective::reduce_scatter({gradient}, sum, "grad", ReduceOp::kSum, true);
    comm.run(collective);
  }
  std::vector<float> expected;
  for (std::int64_t i = 0; i < each; ++i) {
    float total = 0.0f;
    for (int k = 0; k < 2 * world; ++k) total += load(store<BFloat16>(value_at(k, each * comm.rank() + i)));
    expected.push_back(total);
  }
  CHECK(same_bits(sum, expected));
}

/// A mean has the bits of the f32 sum, scaled and rounded once, whether it replaces this rank's term or not.
template <class T>
void check_means(Comm& comm) {
  const int world = comm.world_size();
  for (const std::int64_t each : {1, 7, 40'001}) {
    CAPTURE(each);
    const Tensor x = contribution<T>(comm.rank(), each * world), whole = clone(x);
    const Tensor part = Tensor::empty({each}, x.dtype());
    comm.reduce_scatter(x, part, "mean", ReduceOp::kMean);
    const Tensor own = x.narrow(0, each * comm.rank(), each);
    comm.run(Collective::reduce_scatter({x}, own, "mean in place", ReduceOp::kMean));
    comm.all_reduce(whole, "mean of all", ReduceOp::kMean);
    const auto share = static_cast<float>(1.0 / world);
    std::vector<T> expected;
    for (std::int64_t i = 0; i < each * world; ++i) {
      float total = load(store<T>(value_at(0, i)));
      for (int r = 1; r < world; ++r) total += load(store<T>(value_at(r, i)));
      expected.push_back(store<T>(world == 1 ? total : total * share + 0.0f));
    }
    CHECK(same_bits(whole, expected));
    const auto begin = expected.begin() + each * comm.rank();
    CHECK(same_bits(part, std::vector<T>(begin, begin + each)));
    CHECK(same_bits(own, std::vector<T>(begin, begin + each)));
  }
  const Tensor zeros = full({5}, -0.0, DTypeOf<T>::value);
  comm.all_reduce(zeros, "mean of minus zeros", ReduceOp::kMean);
  CHECK(same_bits(zeros, std::vector<T>(5, store<T>(world == 1 ? -0.0f : 0.0f))));
  const Tensor numbers = Tensor::zeros({world}, DType::i64);
  CHECK_THROWS_AS(comm.all_reduce(numbers, "mean of numbers", ReduceOp::kMean), DTypeError);
  const Tensor sum = Tensor::zeros({1}, DType::f32);
  CHECK_THROWS_AS(
      comm.run(Collective::reduce_scatter({Tensor::zeros({world}, DType::f32)}, sum, "", ReduceOp::kMean, true)),
      ShapeError);
}

void check_moves(Comm& comm) {
  const int world = comm.world_size();
  const int rank = comm.rank();
  for (const std::int64_t count : {1, 5, 3000, 200'003}) {
    CAPTURE(count);
    const Tensor own = contribution<float>(rank, count);
    const Tensor all = Tensor::empty({count * world}, DType::f32);
    comm.all_gather(own, all, "all");
    const Tensor turned = Tensor::empty({count * world}, DType::f32);
    comm.all_to_all(all, turned, "turned");
    bool gathered = true;
    bool exchanged = true;
    for (int r = 0; r < world; ++r) {
      gathered =
          gathered && same_bits(all.narrow(0, r * count, count), contribution<float>(r, count).to_vector<float>());
      exchanged = exchanged &&
                  same_bits(turned.narrow(0, r * count, count), contribution<float>(rank, count).to_vector<float>());
    }
    CHECK(gathered);
    CHECK(exchanged);
    for (const int root : {0, world - 1}) {
      const Tensor x = contribution<float>(rank, count);
      comm.broadcast(x, root, "x");
      CHECK(same_bits(x, contribution<float>(root, count).to_vector<float>()));
    }
  }
}

void check_uneven(Comm& comm) {
  // Rank r owns r + 1 times 1000 elements; nothing for rank 1.
  const int world = comm.world_size();
  const int rank = comm.rank();
  const auto owned = [](int r) { return r == 1 ? std::int64_t{0} : (r + 1) * std::int64_t{1000}; };
  std::vector<dist::Buffer> in;
  std::vector<dist::Buffer> out;
  for (int r = 0; r < world; ++r) {
    in.emplace_back(contribution<float>(rank, owned(r), 100 * r));
    out.emplace_back(Tensor::empty({owned(r)}, DType::f32));
  }
  const Tensor mine = Tensor::empty({owned(rank)}, DType::f32);
  comm.run(Collective::reduce_scatter(in, mine, "shard"));
  CHECK(same_bits(mine, expected_sum<float>(world, owned(rank), 100 * rank)));
  comm.run(Collective::all_gather(mine, out, "shards"));
  for (int r = 0; r < world; ++r) {
    const auto expected = expected_sum<float>(world, owned(r), 100 * r);
    const View& view = out[static_cast<std::size_t>(r)].view;
    CHECK((expected.empty() || std::memcmp(view.data, expected.data(), view.bytes()) == 0));
  }
}

void check_kinds(Comm& comm) {
  const int world = comm.world_size();
  const std::vector<std::int64_t> numbers{comm.rank(), -comm.rank(), std::int64_t{1} << 40};
  Tensor x = Tensor::from_values(numbers, {3});
  comm.all_reduce(x, "numbers");
  const std::int64_t all = world * (world - 1) / 2;
  CHECK(x.to_vector<std::int64_t>() == std::vector<std::int64_t>{all, -all, world * (std::int64_t{1} << 40)});
  x = Tensor::from_values(numbers, {3});
  comm.all_reduce(x, "largest", ReduceOp::kMax);
  CHECK(x.to_vector<std::int64_t>() == std::vector<std::int64_t>{world - 1, 0, std::int64_t{1} << 40});
  x = Tensor::from_values(std::vector<float>{static_cast<float>(comm.rank()), comm.rank() == 0 ? NAN : 1.0f}, {2});
  comm.all_reduce(x, "smallest", ReduceOp::kMin);
  CHECK(x.to_vector<float>()[0] == 0.0f);
  CHECK(std::isnan(x.to_vector<float>()[1]));
  const Tensor flag = Tensor::zeros({1}, DType::boolean);
  *static_cast<bool*>(flag.view().data) = comm.rank() == world - 1;
  comm.all_reduce(flag, "any", ReduceOp::kMax);
  CHECK(flag.item() == 1.0);
  const Tensor wide = Tensor::from_values(std::vector<double>{0.1 * (comm.rank() + 1)}, {1});
  comm.all_reduce(wide, "f64");
  double sum = 0.1;
  for (int r = 1; r < world; ++r) sum += 0.1 * (r + 1);
  CHECK(wide.item() == sum);
}

void check_ring(Comm& comm) {
  const int world = comm.world_size();
  for (const std::int64_t count : {1, 1000, 300'007}) {
    CAPTURE(count);
    const Tensor x = contribution<float>(comm.rank(), count);
    Collective collective = Collective::all_reduce(x, "ring");
    collective.order = dist::SumOrder::kRing;
    comm.run(collective);
    const std::vector<float> sums = x.to_vector<float>();
    const std::vector<float> by_rank = expected_sum<float>(world, count);
    float largest_difference = 0.0f;
    for (std::size_t i = 0; i < sums.size(); ++i) {
      largest_difference = std::max(largest_difference, std::abs(sums[i] - by_rank[i]));
    }
    CHECK(largest_difference < 1e-3f);
    // Another order gives other bits: what the sum by rank is for. Two terms have one order only.
    if (count > 1000) CHECK((largest_difference > 0.0f) == (world > 2));
    const Tensor all = Tensor::empty({count * world}, DType::f32);
    comm.all_gather(x, all, "all");
    for (int r = 0; r < world; ++r) CHECK(same_bits(all.narrow(0, r * count, count), sums));
  }
}

void check_messages(Comm& comm) {
  const int world = comm.world_size();
  if (world == 1) return;
  // Around the ring: even ranks send first.
  const int next = (comm.rank() + 1) % world;
  const int before = (comm.rank() + world - 1) % world;
  const Tensor out = contribution<float>(comm.rank(), 100'000);
  const Tensor in = Tensor::empty({100'000}, DType::f32);
  if (comm.rank() % 2 == 0) {
    comm.send(out, next, "ring");
    comm.recv(in, before, "ring");
  } else {
    comm.recv(in, before, "ring");
    comm.send(out, next, "ring");
  }
  CHECK(same_bits(in, contribution<float>(before, 100'000).to_vector<float>()));
}

}  // namespace

void check_collectives(Comm& comm) {
  comm.barrier("begin");
  check_sums<float>(comm);
  check_sums<BFloat16>(comm);
  check_sums<Half>(comm);
  check_unaligned(comm);
  check_accumulation(comm);
  check_means<float>(comm);
  check_means<BFloat16>(comm);
  check_means<Half>(comm);
  check_moves(comm);
  check_uneven(comm);
  check_kinds(comm);
  check_ring(comm);
  check_messages(comm);
  comm.barrier("end");
}

void check_started_work(Comm& comm) {
  std::vector<Tensor> tensors;
  std::vector<dist::Work> works;
  for (int i = 0; i < 5; ++i) {
    tensors.push_back(contribution<float>(comm.rank(), 20'000 + i, i));
    works.push_back(comm.start(Collective::all_reduce(tensors.back(), cat("x", i))));
  }
  comm.barrier("after them");
  CHECK(works.front().done());
  for (int i = 0; i < 5; ++i) {
    const auto at = static_cast<std::size_t>(i);
    works[at].wait();
    CHECK(works[at].done());
    CHECK(same_bits(tensors[at], expected_sum<float>(comm.world_size(), 20'000 + i, i)));
  }
}

void check_split(Comm& comm) {
  const int world = comm.world_size();
  const int color = comm.rank() % 2;
  const auto group = comm.split(color, -comm.rank());
  REQUIRE(group != nullptr);
  const int size = (world + 1 - color) / 2;
  CHECK(group->world_size() == size);
  CHECK(group->rank() == size - 1 - comm.rank() / 2);
  CHECK(group->members().front() > group->members().back() - (size == 1 ? 1 : 0));
  const Tensor ranks = Tensor::from_values(std::vector<std::int64_t>{comm.rank()}, {1});
  const Tensor all = Tensor::empty({size}, DType::i64);
  const Tensor x = contribution<float>(comm.rank(), 50'000);
  const dist::Work whole = comm.start(Collective::all_reduce(x, "x"));
  group->all_gather(ranks, all, "ranks");
  for (int i = 0; i < size; ++i) {
    CHECK(all.to_vector<std::int64_t>()[static_cast<std::size_t>(i)] == group->members()[static_cast<std::size_t>(i)]);
  }
  whole.wait();
  CHECK(same_bits(x, expected_sum<float>(world, 50'000)));
  const auto none = comm.split(comm.rank() == 0 ? 7 : -1, 0);
  CHECK((none != nullptr) == (comm.rank() == 0));
}

void check_disagreement(Comm& comm) {
  const int odd = comm.world_size() - 1;
  const bool is_odd = comm.rank() == odd;
  comm.barrier("before");
  std::string text;
  std::uint64_t sequence = 0;
  try {
    const Tensor x = Tensor::zeros({is_odd ? 9 : 8}, DType::f32);
    comm.all_reduce(x, "blocks.3.w");
  } catch (const CommError& error) {
    text = error.what();
    CHECK(error.op == "all_reduce");
    sequence = error.sequence;
    CHECK(error.rank == odd);
  }
  CAPTURE(text);
  CHECK(text.find(cat("rank ", odd, " calls all_reduce #", sequence, " 'blocks.3.w' f32 x 9 sum")) !=
        std::string::npos);
  CHECK(text.find(cat("#", sequence, " 'blocks.3.w' f32 x 8 sum")) != std::string::npos);
  CHECK_THROWS_AS(comm.barrier("after"), CommError);
}

}  // namespace castor::test
