// GradientBuckets: gradients of one backward, exchanged between ranks while backward goes on, and summed by their
// owners in the order of the micro-batches.
//
// Source: Li et al. 2020, arXiv:2006.15704 (buckets that start their exchange while backward goes on); Rajbhandari et
// al. 2020, arXiv:1910.02054 (each rank owns the sum of its piece). Delicate: each micro-step the owner of a piece adds
// the ranks' contributions to what it has, rank by rank, in f32; nobody ever adds partial sums of several
// micro-batches, and so the sum's bits depend on no split. Buckets are exchanged in one order on all ranks, whatever
// order gradients appear in.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "autograd/graph.h"
#include "core/device/backend.h"
#include "dist/comm.h"
#include "dist/flat_layout.h"

namespace castor::dist {

struct BucketOptions {
  std::int64_t capacity = 0;                 ///< elements of a bucket
  std::optional<DType> exchange_dtype = {};  ///< contributions are rounded to it before they are sent; none: their own
  bool accumulates = true;                   ///< false: windows have one micro-step, so nothing is kept in f32
  bool keeps_buffers = true;                 ///< false: a bucket's contribution has memory only until it was sent
  bool gathers_means = false;                ///< what is_gathered() is about; only with keeps_buffers
  bool overlaps = true;                      ///< false: nothing is sent before backward has ended
  int replicas = 1;                       ///< ranks that own the same piece: pieces are cut for world size / replicas
  std::optional<Device> sums_on = {};     ///< where sums live between micro-steps; none: where the parameters are
  const char* owner = "GradientBuckets";  ///< whom errors name
};

class GradientBuckets final : public autograd::GradientSink {
 public:
  /// On every rank with the same parameters in the same order, all f32, bf16 or f16; the group must outlive this.
  /// Throws DTypeError naming a parameter of another dtype.
  GradientBuckets(Comm& comm, std::vector<autograd::Variable> parameters, const BucketOptions& options);
  /// Waits for what is on its way.
  ~GradientBuckets() override;
  GradientBuckets(const GradientBuckets&) = delete;
  GradientBuckets& operator=(const GradientBuckets&) = delete;

  /// The buckets in order of their exchange. Items are numbers in `parameters()`: backward reaches the last parameters
  /// first, so these come in reverse.
  const std::vector<FlatArray>& layout() const { return layout_; }
  const std::vector<autograd::Variable>& parameters() const { return parameters_; }
  const std::string& label(std::size_t bucket) const { return buckets_[bucket].label; }

  /// Before a micro-step's backward. Throws ConfigError for a second one in a window where nothing is accumulated.
  ///   position  of the micro-step in its window, from 0
  void begin_micro_step(std::int64_t position);
  /// True: the contributions of the micro-steps from now on are added here, in f32, and sent with that of the first
  /// micro-step that is not deferred. Their sum is then rounded as one contribution.
  void set_deferred(bool is_deferred) { is_deferred_ = is_deferred; }
  void deliver(const autograd::Variable& leaf, Tensor gradient) override;
  Tensor place_of(const autograd::Variable& leaf) override;
  /// After it. A parameter that got no gradient counts as zero. All contributions of this micro-step are added when it
  /// returns.
  void end_micro_step();
  /// At a window's end: this rank's piece of the bucket's gradient, in the parameters' dtype. Call it once: where sums
  /// are kept it divides them in place.
  ///   micro_batches  of the window, of all ranks together
  Tensor mean(std::size_t bucket, std::int64_t micro_batches);
  /// True where, beside backward, every rank got the whole gradient of the bucket in contribution(): gathers_means was
  /// asked for and nothing accumulates. Then nobody needs mean().
  bool is_gathered(std::size_t bucket) const { return options_.gathers_means && buckets_[bucket].is_mean; }
  /// Where this rank's contribution was gathered, [elements] of the bucket; between micro-steps free for other use
  /// (mean() may lie in it). Undefined where buffers are not kept.
  const Tensor& contribution(std::size_t bucket) const { return buckets_[bucket].contribution; }

 private:
  struct Bucket {
    std::string label;
    std::vector<bool> filled;  // by slot, in this micro-step
    std::size_t filled_count = 0;
    Tensor contribution;   // this rank's, of the whole bucket
    Tensor held;           // f32: the sum of deferred contributions; undefined: there are none
    bool is_mean = false;  // the exchange gives the rounded mean, which is the window's gradient: nothing is added
    Tensor sum;            // of this rank's piece, f32, or the mean in the parameters' dtype
    Tensor arriving;       // it while it is exchanged, where it lives elsewhere
    Device device;         // of the parameters
    std::optional<Work> exchange, gather;
  };
  void make_contribution(std::size_t bucket);
  Tensor part_of(std::size_t bucket, std::size_t slot);
  Tensor held_part(std::size_t bucket, std::size_t slot);
  void hold(std::size_t bucket, std::size_t slot, const Tensor& gradient);
  void note_filled(std::size_t bucket, std::size_t slot);
  void start_full();
  void start(std::size_t bucket);
  void finish(Bucket& bucket);
  void send_off(const Tensor& sum, const Tensor& home);
  void await_sent_off(std::size_t most);

  Comm& comm_;
  BucketOptions options_;
  std::vector<autograd::Variable> parameters_;  // in reverse order of the model's
  std::vector<FlatArray> layout_;
  std::vector<Bucket> buckets_;
  std::map<autograd::VariableState*, std::pair<std::size_t, std::size_t>> place_;  // bucket and slot
  /// Sums on their way to where they live; kept until they are there.
  struct SentOff {
    Tensor source;
    Event end;
  };
  std::deque<SentOff> sent_off_;
  std::unique_ptr<SideQueue> outgoing_;  // made for the first of them
  std::size_t started_ = 0;
  bool is_deferred_ = false;
  bool has_sums_ = false;  // of this window's earlier micro-steps
};

/// The pieces of `whole` (the array's elements) as `array` is cut, for all_gather and reduce_scatter.
///   replicas  how often all of them follow on one another: rank r of the group has piece r % (number of pieces)
std::vector<Buffer> pieces_of(const Tensor& whole, const FlatArray& array, int replicas = 1);

}  // namespace castor::dist
