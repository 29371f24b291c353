// Stepper: runs an optimizer over the parts of parameters that a process owns. Without sharding a part is a whole
// parameter; a plugin that shards gives each rank its own stretches, and the bits are those of the uncut step.
//
// Delicate: the order of calls is the contract (each pass over all ranges of a parameter in order of offset, then its
// finish; then the updates), and sums over parameters that several owners share are completed by a StatsReducer in the
// order of their blocks, never as partial sums.
//
// Parts whose states are on the host are stepped by both: the host steps stretches from their beginning, the GPU from
// their end (streamed_steps.h), whoever has time the next one; both give the same bits. They may be stepped late: their
// gradients wait where they are until somebody needs the weights, so that they are stepped while the device already
// computes the next forward pass with those before them. The thread that launches that pass does it, when it comes to
// them: nothing is shared with another thread.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "autograd/optim/optimizer.h"
#include "autograd/optim/side_copies.h"
#include "autograd/optim/state_home.h"
#include "autograd/optim/streamed_steps.h"

namespace castor::autograd {

/// Elements [offset, offset + count) of a parameter that this process steps.
struct Part {
  /// All of a parameter, where its data() and grad() lie at each step.
  Part(Variable parameter, int group);
  /// A stretch of it.
  ///   offset   a multiple of kBlockElements
  ///   weights  f32|bf16|f16 [count], row-major: where the stretch's weights lie
  Part(Variable parameter, int group, std::int64_t offset, Tensor weights);

  bool is_whole() const { return offset == 0 && count == variable.data().numel(); }

  Variable variable;
  int group = 0;
  std::int64_t offset = 0;
  std::int64_t count = 0;
  Tensor weights;  ///< undefined: the variable's own data
  /// Where its states live and its step is computed; unset: where its weights are. Weights and gradient of another
  /// place are copied there for the step, and the new weights back.
  std::optional<Device> states_on = {};
  /// Who makes its states, for the step on `states_on`; null: they are memory of their own. Must outlive the stepper.
  StateHome* states_in = nullptr;
  Tensor gradient;  ///< f32|bf16|f16 [count]; undefined: the variable's grad(), and zeros where that is undefined too
};

/// Sums of squares of neighbouring blocks of a process's parts.
struct BlockRun {
  std::int64_t offset = 0;  ///< of the first one among all blocks of all parts, in their order
  Tensor sums;              ///< f64 [blocks], anywhere
};

/// Completes what is summed over parameters that several processes own parts of.
class StatsReducer {
 public:
  virtual ~StatsReducer() = default;
  /// The statistics of one pass over a whole parameter: `add` adds those of this process's part to a carry.
  virtual Stats reduce(std::size_t part, const std::function<void(Stats& carry)>& add) = 0;
  /// Of each parameter, in their order, the sum of its blocks, as fold_segments adds them: f64 [parameters], where the
  /// owners' sums meet.
  ///   runs  of this process's blocks; those that no run has are 0
  virtual Tensor sum_blocks(const std::vector<BlockRun>& runs) = 0;
  /// The parameters' names, in their order.
  virtual const std::vector<std::string>& names() const = 0;
};

/// A state of a part, for checkpoints.
struct StatePiece {
  Shape shape;              ///< of the whole state
  std::int64_t offset = 0;  ///< where the tensor's first element lies in it
  Tensor tensor;            ///< the whole state, or [count] of it
  bool is_first = true;     ///< false: a state that is kept whole, which another owner has as well
};

class Stepper {
 public:
  struct Options {
    std::int64_t cut_elements = 0;  ///< > 0: parts are stepped in ranges of that many elements (a multiple of
                                    ///< kBlockElements), which is how tests prove the contract
    bool keeps_masters = true;      ///< false: 16-bit weights are widened for a step and rounded after it
    /// True: step() leaves parts whose states are elsewhere than the variable to `finish`, which must be called before
    /// anyone else uses their weights or what lies where their gradient is.
    bool may_be_late = false;
    /// Elements of the stretches that host and GPU share a part by; a multiple of kBlockElements.
    std::int64_t stretch_elements = StreamedSteps::kElements;
  };
  /// Makes the states, zero, and for parts of 16 bits an f32 master, called "master", of the weights as they are.
  /// Throws InternalError for a cut or group that does not exist, DTypeError or ShapeError for parameters that are not
  /// row-major f32, f16 or bf16.
  Stepper(Optimizer& optimizer, std::vector<Part> parts, const Options& options);
  Stepper(Optimizer& optimizer, std::vector<Part> parts) : Stepper(optimizer, std::move(parts), Options{}) {}
  Stepper(const Stepper&) = delete;
  Stepper& operator=(const Stepper&) = delete;

  /// Who completes sums over parts of other processes; must outlive this. None: this process has every part.
  void set_reducer(StatsReducer& reducer) { reducer_ = &reducer; }

  /// One step from each part's gradient.
  ///   gradient_scale   multiplies every gradient
  void step(double gradient_scale = 1.0);
  /// One step from gradients that are `scale` times too large, limited together to a norm of max_norm where there is
  /// one: gradient_squares, clip_factor and step(factor), with their bits. Where every part is stepped where its
  /// weights are, the device finds the factor itself, and steps while the host reads the squares.
  ///   returns  gradient_squares()
  std::vector<double> step_limited(double scale, std::optional<double> max_norm);
  /// Steps those of parts [first, first + count) that the last step left, with its hyper-parameters. Nothing while
  /// parts are stepped, so whoever is told of every use of the weights may call it.
  void finish(std::size_t first, std::size_t count);
  /// The same for all of them, and waits for what the GPU steps. Whatever reads or writes states or weights here does
  /// it first.
  void finish();

  /// The L2 norm of all gradients, of every owner, over fixed blocks in parameter order; the input of clipping. 0 on
  /// meta.
  double gradient_norm() const;
  /// The sum of squares of each parameter's gradient, of every owner, which the norm is made of; empty on meta.
  std::vector<double> gradient_squares() const;
  /// The norm that they make together.
  static double norm_of(const std::vector<double>& squares);
  /// Whose they are, in the same order.
  std::vector<std::string> gradient_names() const;

  /// From now on steps are recorded and run as one, with the same bits, wherever that can be: all that they touch is on
  /// one GPU and stays where it is, and the optimizer has group_scalars. Call it where gradients come from recordings.
  void record_steps() { records_ = true; }
  /// Steps that were run as recordings so far.
  std::int64_t recorded_steps() const { return recorded_steps_; }

  /// Called before a step changes a part and its states; for those who still read them (a checkpoint in writing).
  using BeforeUpdate = std::function<void(const Part& part, const std::map<std::string, Tensor>& states)>;
  void set_before_update(BeforeUpdate before_update) { before_update_ = std::move(before_update); }

  std::vector<Part>& parts() { return parts_; }
  const std::vector<Part>& parts() const { return parts_; }
  /// Forgets every gradient.
  void zero_grad();
  /// Writes the masters' rounding to the weights: after gradients took their place and no step followed.
  void restore_weights();
  /// Takes the masters from the weights again: after weights were loaded without their masters.
  void refresh_masters();
  /// Elements with states on the host that both may step, by who did it so far.
  struct SharedElements {
    std::int64_t by_gpu = 0, by_host = 0;
  };
  const SharedElements& shared_elements() const { return shared_; }
  std::int64_t step_count() const { return step_count_; }
  void set_step_count(std::int64_t count) { step_count_ = count; }
  /// States by "parameter name/state name", for checkpoints.
  std::map<std::string, StatePiece> named_states();

 private:
  /// What the step of a stretch of a part reads and writes, in one place.
  struct Work {
    Tensor weights, gradient;
    std::int64_t begin = 0;  ///< of the stretch, in the part
  };
  /// The same on its way, where it is elsewhere.
  struct Fetching {
    std::size_t part;
    std::int64_t begin;
    SideCopies::Fetch gradient, weights;
    Tensor home;    ///< where the weights lie
    bool has_left;  ///< they are written back when they are stepped
  };
  /// How far the step of a part is: the host takes stretches from the beginning, the GPU from the end.
  struct Progress {
    std::int64_t fetched = 0;   ///< [0, fetched) is the host's
    std::int64_t streamed = 0;  ///< [streamed, count) is the GPU's
    bool is_told = false;       ///< who wants to know before it changes
    std::vector<Event> ends = {};
  };
  Progress& progress_of(std::size_t index);
  void tell(std::size_t index);
  Tensor waiting_gradient(std::size_t index) const;
  Fetching fetch(std::size_t index, std::int64_t begin, std::int64_t count);
  std::optional<Fetching> fetch_next(std::size_t index);
  std::optional<Fetching> take_next(std::size_t index);
  void fetch_ahead(std::size_t index, std::span<const std::size_t> later);
  std::size_t moved_bytes(std::size_t index) const;
  bool can_stream(std::size_t index) const;
  std::size_t most_streamed_bytes() const;
  std::int64_t stretch_of(std::size_t index) const;
  bool stream_one(std::size_t index, const StepContext& context);
  void stream(std::size_t index, std::span<const std::size_t> later, const StepContext& context);
  void step_part(std::size_t index, std::span<const std::size_t> later, const StepContext& context);
  void step_all(const std::vector<std::size_t>& indices, const StepContext& context);
  Work arrive(Fetching& fetching);
  void step_alone(const Fetching& fetching, const Work& work, const StepContext& context);
  bool is_late(std::size_t index) const;
  /// The block sums of a device's gradients, in one array: a read waits for the device, so there must be few.
  struct BlockSums {
    Tensor all;                              // f64; sum_blocks makes it
    std::vector<std::size_t> parts;          // whose gradients are there, in order
    std::vector<std::int64_t> begins = {0};  // of each part's blocks, and the end

    /// The parts' sums where they belong, of so many parts; 0 for the others.
    std::vector<double> spread(const std::vector<double>& folded, std::size_t count) const;
  };
  std::vector<BlockSums> block_layout() const;
  void sum_blocks(BlockSums& sums) const;
  std::vector<BlockSums> summed_blocks() const;
  std::vector<BlockRun> runs_of(const std::vector<BlockSums>& found) const;
  std::optional<Device> limiting_device() const;
  void step_as(StepContext context);
  SideCopies::Fetch begin_read(const Tensor& squares);

  // Recorded steps (stepper_recorded.cpp).
  struct Limit {
    double scale, max_norm;
    bool operator==(const Limit&) const = default;
  };
  /// A kind of step, and its recording.
  struct Recorded {
    bool has_squares;
    std::optional<Limit> limit;
    std::size_t groups;
    std::vector<const void*> addresses;
    // What it was made of; its first step went op by op.
    BlockSums sums = {};
    Tensor scalars = {}, begins = {}, folded = {}, factor = {};
    std::unique_ptr<Recording> recording = nullptr;
  };
  std::vector<const void*> addresses() const;  // of weights and gradients; states stay where they are
  Recorded* recorded(bool has_squares, std::optional<Limit> limit);  // null: this step goes op by op
  void record(Recorded& made, Device device);
  std::vector<double> run(const Recorded& made, double gradient_scale);
  std::vector<Range> ranges_of(std::size_t index, const Work& work) const;
  bool joins_others(std::size_t index) const;

  Optimizer& optimizer_;
  std::vector<Part> parts_;
  std::vector<std::map<std::string, Tensor>> states_;  // by part
  Options options_;
  std::int64_t step_count_ = 0;
  StatsReducer* reducer_ = nullptr;
  BeforeUpdate before_update_;

  /// What a step left.
  struct Late {
    std::vector<std::size_t> parts;           // in order
    std::map<std::size_t, Tensor> gradients;  // theirs
    StepContext context;
    std::vector<ParamGroup> groups;
  };
  Late late_;
  bool is_stepping_ = false;
  std::vector<bool> may_stream_;             // by part: the last step's can_stream
  std::map<std::size_t, Progress> begun_;    // parts whose step is under way
  std::deque<Fetching> ahead_;               // what the host steps next, in order
  std::size_t most_ahead_ = 0;               // bytes of weights
  std::unique_ptr<SideCopies> side_copies_;  // made by the first that is needed; ends before what is on its way
  SharedElements shared_;
  bool records_ = false;
  std::int64_t recorded_steps_ = 0;
  std::deque<Recorded> recorded_;
  std::unique_ptr<StreamedSteps> streamed_;  // made by the first that is needed; null before
};

}  // namespace castor::autograd
