// HostComm: Comm over any Link. It numbers collectives, runs them in order, turns what goes wrong into one failure of
// the whole job, and keeps the record. Threads, shared memory and TCP differ only in the Fabric it is given.
//
// Delicate: a blocking call runs on the caller's thread unless started work is ahead of it; the group's own thread
// exists only once something was started.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>

#include "dist/announcement.h"
#include "dist/comm.h"
#include "dist/exchange.h"
#include "dist/link.h"

namespace castor::dist {

/// What holds for a group and those split from it.
struct CommOptions {
  std::chrono::milliseconds timeout{600'000};  ///< the longest a collective may wait for other ranks
};

class HostComm final : public Comm {
 public:
  /// A group whose links are there.
  HostComm(std::shared_ptr<Fabric> fabric, std::unique_ptr<Link> link, std::string name, std::vector<int> members,
           const CommOptions& options);
  /// Fails the job if collectives are still under way: wait for them first.
  ~HostComm() override;

  /// Connects the group "world" of all ranks of a job. Throws CommError, CommTimeout.
  static std::unique_ptr<HostComm> connect_world(std::shared_ptr<Fabric> fabric, int rank, int world_size,
                                                 const CommOptions& options);

  int rank() const override { return link_->rank(); }
  int world_size() const override { return link_->size(); }
  const std::string& name() const override { return name_; }
  const std::vector<int>& members() const override { return members_; }
  std::unique_ptr<Comm> split(int color, int key) override;
  void abort(const std::string& reason) noexcept override;

 protected:
  Work submit(Collective collective) override;
  void execute(Collective collective) override;

 private:
  struct Job;
  struct HostWork;
  Job number(Collective collective);
  void perform(Job& job);
  void transfer(const Job& job);
  void agree(const Job& job, std::span<const Announcement> said);
  [[noreturn]] void fail(const Job& job, std::vector<int> peers, const std::string& what, bool late);
  [[noreturn]] void report(const Job& job, const Failure& failure);
  [[noreturn]] void throw_elsewhere(const Job& job, Failure failure);
  void work_loop();
  std::exception_ptr perform_caught(Job& job);
  std::shared_ptr<HostWork> queue_locked(Job job);

  std::shared_ptr<Fabric> fabric_;
  std::unique_ptr<Link> link_;
  std::string name_;
  std::vector<int> members_;
  CommOptions options_;
  int splits_ = 0;
  std::uint64_t sequence_ = 0;
  std::vector<std::uint64_t> sent_;  // messages to and from each peer, numbered apart from collectives
  std::vector<std::uint64_t> received_;
  std::vector<std::byte> scratch_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> queue_;
  bool busy_ = false;
  bool closing_ = false;
  std::thread worker_;
};

}  // namespace castor::dist
