// GPUs that write into each other's memory, without GPUs: dist/comm_cuda_peers.cpp over a runtime whose memory other
// processes map and whose streams are threads (tests/support/fake_cuda_runtime). Ranks are processes: this program
// starts itself as each of them, with the skipped case below. What real GPUs do: tests/gpu/device_comm_test.cpp.
#include <array>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <functional>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/file.h"
#include "core/device/cuda_runtime.h"
#include "dist/comm_cuda_peers.h"
#include "dist/comm_thread.h"
#include "dist/job.h"
#include "dist/run_job.h"
#include "tests/support/rank_processes.h"
#include "tests/support/temp_dir.h"

namespace {

using namespace castor;
using namespace castor::dist;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kBoxBytes = std::size_t{64} << 10;
constexpr int kRounds = 60;
constexpr const char* kRankCase = "a rank's part of a job whose GPUs are told by a fake runtime";

struct Stream {
  Stream() { cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, 0); }
  ~Stream() { cudaStreamDestroy(stream); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  void copy(std::vector<char>& to, const std::vector<char>& from, std::size_t bytes) const {
    cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDefault, stream);
  }
  cudaStream_t stream = nullptr;
};

std::unique_ptr<DeviceLink> connect(Comm& host, Job& job) {
  return connect_peers(host, {DeviceType::cuda, static_cast<std::int16_t>(job.info().local_rank)}, job.health(),
                       kBoxBytes);
}

/// What place `from` sends to place `to` in a round: nothing, a byte, and about one piece or several.
std::vector<char> message(int round, int from, int to, int world) {
  const std::size_t slot = kBoxBytes / 2 / static_cast<std::size_t>(world - 1) / 4096 * 4096;
  const std::array<std::size_t, 6> sizes = {0, 1, slot - 1, slot, slot + 1, 5 * slot + 77};
  std::vector<char> bytes(sizes[static_cast<std::size_t>(round * 7 + from * 3 + to * 5) % sizes.size()]);
  for (std::size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<char>(i * 31 / 7 + static_cast<std::size_t>(round * 101 + from * 17 + to * 3 + 1));
  return bytes;
}

/// Exchanges of one group in the order of a stream: what is sent is made right before and spoilt right after, and what
/// comes is taken away and spoilt, so an exchange that begins too early or ends too late shows.
class Conversation {
 public:
  Conversation(Comm& host, Job& job)
      : world_(host.world_size()),
        own_(host.rank()),
        link_(connect(host, job)),
        out_(static_cast<std::size_t>(world_), std::vector<char>(kBoxBytes * 4)),
        in_(out_),
        spoilt_(kBoxBytes * 4, 'x') {}

  bool is_connected() const { return link_ != nullptr; }
  DeviceLink& link() { return *link_; }
  const Stream& stream() const { return stream_; }

  void talk(int round) {
    std::vector<DeviceBytes> sends(out_.size()), receives(out_.size());
    const std::size_t first = letters_.size();
    for (int r = 0; r < world_; ++r) {
      if (r == own_) continue;
      const auto at = static_cast<std::size_t>(r);
      Letter& letter =
          letters_.emplace_back(Letter{at, message(round, own_, r, world_), message(round, r, own_, world_), {}});
      letter.taken.resize(letter.expected.size());
      stream_.copy(out_[at], letter.source, letter.source.size());
      sends[at] = {out_[at].data(), letter.source.size()};
      receives[at] = {in_[at].data(), letter.expected.size()};
    }
    link_->exchange(sends, receives, stream_.stream);
    for (std::size_t i = first; i < letters_.size(); ++i) {
      Letter& letter = letters_[i];
      stream_.copy(out_[letter.at], spoilt_, letter.source.size());
      stream_.copy(letter.taken, in_[letter.at], letter.expected.size());
      stream_.copy(in_[letter.at], spoilt_, letter.expected.size());
    }
  }
  void check() {
    cudaStreamSynchronize(stream_.stream);
    std::size_t wrong = 0;
    for (const Letter& letter : letters_) wrong += letter.taken == letter.expected ? 0 : 1;
    CHECK(wrong == 0);
    CHECK(letters_.size() == static_cast<std::size_t>(kRounds * (world_ - 1)));
  }

 private:
  struct Letter {
    std::size_t at;
    std::vector<char> source, expected, taken;
  };
  int world_, own_;
  std::unique_ptr<DeviceLink> link_;
  std::vector<std::vector<char>> out_, in_;  // by place, used by all rounds
  std::vector<char> spoilt_;
  std::deque<Letter> letters_;
  Stream stream_;  // ends first
};

/// Two groups at a time, one of them in the reverse order of ranks.
void converse(Job& job) {
  const auto reversed = job.world().split(0, -job.world().rank());
  Conversation straight(job.world(), job), other(*reversed, job);
  REQUIRE(straight.is_connected());
  REQUIRE(other.is_connected());
  for (int round = 0; round < kRounds; ++round) {
    straight.talk(round);
    other.talk(round + 1);
  }
  straight.check();
  other.check();
}

/// Rank 1 is killed; the others, whose streams wait for it, end in time. Their notes say that all went well: the job's
/// exit code is rank 1's.
void lose_a_rank(Job& job) {
  Conversation conversation(job.world(), job);
  REQUIRE(conversation.is_connected());
  for (int round = 0; round < 5; ++round) conversation.talk(round);
  if (job.world().rank() == 1) {
    std::this_thread::sleep_for(100ms);
    raise(SIGKILL);
  }
  for (int round = 5; round < 20; ++round) conversation.talk(round);
  while (!job.health().failed()) std::this_thread::sleep_for(5ms);
  REQUIRE(cudaStreamQuery(conversation.stream().stream) == cudaErrorNotReady);
  const auto begin = Clock::now();
  conversation.link().abort();
  cudaStreamSynchronize(conversation.stream().stream);
  REQUIRE(Clock::now() - begin < 2s);
  REQUIRE_THROWS_AS(conversation.talk(4), JobFailed);
  write_file_atomically(join_path(std::getenv("CASTOR_TEST_FOLDER"), cat("survived_", job.world().rank())), "");
}

/// One leaves a while before the others, who may still be sending.
void leave_early(Job& job) {
  auto conversation = std::make_unique<Conversation>(job.world(), job);
  for (int round = 0; round < 3; ++round) conversation->talk(round);
  if (job.world().rank() != 0) std::this_thread::sleep_for(300ms);
  cudaStreamSynchronize(conversation->stream().stream);
  const auto begin = Clock::now();
  conversation.reset();
  CHECK(Clock::now() - begin < 2s);
}

void be_refused(Job& job) {
  CHECK(connect(job.world(), job) == nullptr);
  CHECK(connect(job.world(), job) == nullptr);  // nobody is left behind by the first
}

struct Body {
  const char* name;
  void (*run)(Job& job);
};
constexpr Body kConverse{"converse", converse}, kLoseARank{"lose a rank", lose_a_rank},
    kLeaveEarly{"leave early", leave_early}, kBeRefused{"be refused", be_refused};

int as_processes(const Body& body, int ranks) {
  setenv("CASTOR_TEST_BODY", body.name, 1);
  return run_job(test::ranks_of(kRankCase, ranks));
}

}  // namespace

TEST_CASE("a rank's part of a job whose GPUs are told by a fake runtime" * doctest::skip()) {
  const std::string name = std::getenv("CASTOR_TEST_BODY");
  Job job(rank_info_from(process_environment()), {});
  for (const Body& body : {kConverse, kLoseARank, kLeaveEarly, kBeRefused}) {
    if (name == body.name) body.run(job);
  }
}

TEST_CASE("messages of any size arrive whole between two to five ranks, in the order of their streams") {
  for (const int ranks : {2, 3, 5}) {
    CAPTURE(ranks);
    CHECK(as_processes(kConverse, ranks) == 0);
  }
}

TEST_CASE("ranks whose streams wait for one that was killed end them, and send no more") {
  const test::TempDir folder;
  setenv("CASTOR_TEST_FOLDER", folder.path().c_str(), 1);
  CHECK(as_processes(kLoseARank, 3) == 128 + SIGKILL);
  for (const int rank : {0, 2}) CHECK(std::filesystem::exists(folder.path() / cat("survived_", rank)));
}

TEST_CASE("ranks may leave at different times") { CHECK(as_processes(kLeaveEarly, 3) == 0); }

TEST_CASE("where one rank cannot reach another one's memory none uses this way, and so for threads of one process") {
  setenv("CASTOR_TEST_UNREACHED", "1", 1);
  CHECK(as_processes(kBeRefused, 3) == 0);
  unsetenv("CASTOR_TEST_UNREACHED");
  run_ranks(2, [](Comm& host) {
    const Health health;
    CHECK(connect_peers(host, {DeviceType::cuda, static_cast<std::int16_t>(host.rank())}, health) == nullptr);
  });
}
