// Sizes first, then the bytes; see values.h.
#include "dist/values.h"

#include <cstring>

#include "core/base/error.h"

namespace castor::dist {

void barrier(Comm* comm) {
  if (comm != nullptr) comm->barrier();
}

void master_only(const Comm* comm, const std::function<void()>& fn) {
  if (is_main(comm)) fn();
}

std::vector<std::string> all_gather_object(Comm* comm, const std::string& text, const std::string& label) {
  if (comm == nullptr) return {text};
  const auto own = static_cast<std::size_t>(comm->rank());
  const Tensor sizes = Tensor::zeros({comm->world_size()}, DType::i64);
  sizes.data<std::int64_t>()[own] = static_cast<std::int64_t>(text.size());
  comm->all_gather(sizes.narrow(0, comm->rank(), 1), sizes, cat("lengths of ", label));
  std::vector<Tensor> texts;
  std::vector<Buffer> pieces;
  for (const std::int64_t size : sizes.to_vector<std::int64_t>()) {
    texts.push_back(Tensor::empty({size}, DType::u8));
    pieces.emplace_back(texts.back());
  }
  texts[own].copy_from_host(text.data(), text.size());
  comm->run(Collective::all_gather(texts[own], std::move(pieces), label));
  std::vector<std::string> all;
  for (const Tensor& each : texts) {
    all.emplace_back(static_cast<std::size_t>(each.numel()), '\0');
    each.copy_to_host(all.back().data(), all.back().size());
  }
  return all;
}

std::string broadcast_object(Comm* comm, const std::string& text, int root, const std::string& label) {
  if (comm == nullptr) return text;
  const std::string said = comm->rank() == root ? text : std::string();
  return all_gather_object(comm, said, label)[static_cast<std::size_t>(root)];
}

std::map<std::string, double> all_reduce_dict(Comm* comm, const std::map<std::string, double>& values, bool is_mean,
                                              const std::string& label) {
  const int world_size = world_size_of(comm);
  if (world_size == 1) return values;
  std::vector<double> sums;
  for (const auto& [name, value] : values) sums.push_back(value);
  const Tensor all = Tensor::from_values(sums, {static_cast<std::int64_t>(sums.size())});
  comm->all_reduce(all, label);
  std::map<std::string, double> result;
  std::size_t i = 0;
  for (const auto& [name, value] : values) {
    const double sum = all.data<double>()[i++];
    result[name] = is_mean ? sum / world_size : sum;
  }
  return result;
}

std::uint64_t sync_random_seed(Comm* comm, std::uint64_t seed) {
  if (comm == nullptr) return seed;
  const Tensor drawn = Tensor::from_values(std::vector<std::int64_t>{static_cast<std::int64_t>(seed)}, {1});
  comm->broadcast(drawn, 0, "seed");
  return static_cast<std::uint64_t>(drawn.data<std::int64_t>()[0]);
}

namespace {

// Length (8 bytes, little end first) and bytes of each.
std::string joined(const std::vector<std::string>& texts) {
  std::string out;
  for (const std::string& text : texts) {
    const std::uint64_t size = text.size();
    out.append(reinterpret_cast<const char*>(&size), sizeof(size));
    out += text;
  }
  return out;
}

std::vector<std::string> parted(const std::string& bytes) {
  std::vector<std::string> texts;
  for (std::size_t at = 0; at < bytes.size();) {
    std::uint64_t size = 0;
    std::memcpy(&size, bytes.data() + at, sizeof(size));
    at += sizeof(size);
    texts.push_back(bytes.substr(at, size));
    at += size;
  }
  return texts;
}

}  // namespace

std::vector<std::string> collect_results(Comm* comm, const std::vector<std::string>& own, std::size_t size) {
  std::vector<std::vector<std::string>> parts;
  for (const std::string& bytes : all_gather_object(comm, joined(own), "results")) parts.push_back(parted(bytes));
  std::vector<std::string> results;
  for (std::size_t i = 0; i < size; ++i) {
    const std::size_t rank = i % parts.size(), place = i / parts.size();
    if (place >= parts[rank].size()) {
      throw InternalError(cat("collect_results: of ", size, " results rank ", rank, " should have number ", place,
                              " and has ", parts[rank].size()));
    }
    results.push_back(std::move(parts[rank][place]));
  }
  return results;
}

}  // namespace castor::dist
