// Texts between ranks, and failures that all of them learn of.
#include "strategy/checkpoint/save_group.h"

#include <utility>

namespace castor::strategy {

std::vector<std::string> SaveGroup::gather(const std::string& text) {
  if (ranks_ == nullptr) return {text};
  const auto own = static_cast<std::size_t>(rank());
  const Tensor sizes = Tensor::zeros({world_size()}, DType::i64);
  sizes.data<std::int64_t>()[own] = static_cast<std::int64_t>(text.size());
  ranks_->all_gather(sizes.narrow(0, rank(), 1), sizes, "lengths of a save's texts");
  std::vector<Tensor> texts;
  std::vector<dist::Buffer> pieces;
  for (const std::int64_t size : sizes.to_vector<std::int64_t>()) {
    texts.push_back(Tensor::empty({size}, DType::u8));
    pieces.emplace_back(texts.back());
  }
  texts[own].copy_from_host(text.data(), text.size());
  ranks_->run(dist::Collective::all_gather(texts[own], std::move(pieces), "texts of a save"));
  std::vector<std::string> all;
  for (const Tensor& each : texts) {
    all.emplace_back(static_cast<std::size_t>(each.numel()), '\0');
    each.copy_to_host(all.back().data(), all.back().size());
  }
  return all;
}

std::string SaveGroup::from_main(const std::string& text) { return gather(is_main() ? text : std::string()).front(); }

void SaveGroup::together(const std::function<void()>& action) {
  if (ranks_ == nullptr) return action();
  std::exception_ptr failure;
  std::string text;
  try {
    action();
  } catch (const std::exception& error) {
    failure = std::current_exception();
    text = cat("rank ", rank(), ": ", error.what());
  }
  const std::vector<std::string> failures = gather(text);
  if (failure != nullptr) std::rethrow_exception(failure);
  for (const std::string& other : failures) {
    if (!other.empty()) throw Error(cat("the checkpoint was not saved, ", other));
  }
}

}  // namespace castor::strategy
