// Who a process is, read from each launcher's variables, and what is refused.
#include "dist/launch.h"

#include <map>

#include <doctest/doctest.h>

#include "core/base/error.h"

namespace {

using namespace castor;
using dist::Environment;
using dist::infer_launcher;
using dist::rank_info_from;
using dist::RankInfo;

Environment of(std::map<std::string, std::string> variables) {
  return [variables = std::move(variables)](const std::string& name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    return found == variables.end() ? std::nullopt : std::optional<std::string>(found->second);
  };
}

std::map<std::string, std::string> torchrun() {
  return {{"RANK", "3"},
          {"WORLD_SIZE", "4"},
          {"LOCAL_RANK", "1"},
          {"LOCAL_WORLD_SIZE", "2"},
          {"MASTER_ADDR", "127.0.0.1"},
          {"MASTER_PORT", "4711"}};
}

std::string refusal(std::map<std::string, std::string> variables, const std::string& launcher = "auto") {
  try {
    rank_info_from(of(std::move(variables)), launcher);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "nothing was refused";
}

}  // namespace

TEST_CASE("the launcher is inferred in the peers' order") {
  CHECK(infer_launcher(of({})) == "none");
  CHECK(infer_launcher(of({{"OMPI_COMM_WORLD_LOCAL_RANK", "0"}})) == "mpi");
  CHECK(infer_launcher(of({{"OMPI_COMM_WORLD_LOCAL_RANK", "0"}, {"SLURM_NTASKS", "2"}})) == "slurm");
  CHECK(infer_launcher(of({{"WORLD_SIZE", "1"}, {"SLURM_NTASKS", "2"}})) == "pytorch");
}

TEST_CASE("without a launcher a process is a job of one that holds its own store") {
  const RankInfo info = rank_info_from(of({}));
  CHECK(info.world_size == 1);
  CHECK(info.holds_store);
  CHECK(info.store_port == 0);
  CHECK(info.secret.size() == 64);
}

TEST_CASE("torchrun's variables are read, and its agent's port is not taken") {
  auto variables = torchrun();
  RankInfo info = rank_info_from(of(variables));
  CHECK(info.launcher == "pytorch");
  CHECK(info.rank == 3);
  CHECK(info.world_size == 4);
  CHECK(info.local_rank == 1);
  CHECK(info.local_world_size == 2);
  CHECK(info.store_host == "127.0.0.1");
  CHECK(info.store_port == 4711);
  CHECK_FALSE(info.holds_store);
  variables["TORCHELASTIC_USE_AGENT_STORE"] = "True";
  variables["TORCHELASTIC_RESTART_COUNT"] = "2";
  variables["RANK"] = "0";
  info = rank_info_from(of(variables));
  CHECK(info.store_port == 4712);
  CHECK(info.holds_store);
  CHECK(info.restart_count == 2);
  variables["CASTOR_STORE_IS_SERVED"] = "1";
  CHECK_FALSE(rank_info_from(of(variables)).holds_store);
}

TEST_CASE("slurm's and mpirun's variables are read") {
  std::map<std::string, std::string> slurm{{"SLURM_PROCID", "5"},
                                           {"SLURM_NTASKS", "8"},
                                           {"SLURM_LOCALID", "1"},
                                           {"SLURM_NODELIST", "gpu[003-007,9],login"},
                                           {"CASTOR_JOB_SECRET", "0123456789abcdef"}};
  RankInfo info = rank_info_from(of(slurm));
  CHECK(info.rank == 5);
  CHECK(info.store_host == "gpu003");
  CHECK(info.store_port == 29500);
  slurm["SLURM_NODELIST"] = "alpha,beta";
  CHECK(rank_info_from(of(slurm)).store_host == "alpha");
  slurm["MASTER_ADDR"] = "10.0.0.1";
  CHECK(rank_info_from(of(slurm)).store_host == "10.0.0.1");
  info = rank_info_from(of({{"OMPI_COMM_WORLD_RANK", "1"},
                            {"OMPI_COMM_WORLD_SIZE", "2"},
                            {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                            {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                            {"MASTER_ADDR", "localhost"}}));
  CHECK(info.launcher == "mpi");
  CHECK(info.rank == 1);
  CHECK(info.local_world_size == 2);
  info = rank_info_from(of({{"PMI_RANK", "1"}, {"PMI_SIZE", "3"}, {"MASTER_ADDR", "localhost"}}), "mpi");
  CHECK(info.world_size == 3);
}

TEST_CASE("every rank of a machine knows how many there are, under slurm and MPICH, too") {
  std::map<std::string, std::string> slurm{{"SLURM_PROCID", "4"},
                                           {"SLURM_NTASKS", "7"},
                                           {"SLURM_LOCALID", "0"},
                                           {"SLURM_STEP_NODELIST", "gpu[1-4]"},
                                           {"SLURM_STEP_TASKS_PER_NODE", "2(x3),1"},
                                           {"SLURM_TASKS_PER_NODE", "8(x4)"},
                                           {"CASTOR_JOB_SECRET", "0123456789abcdef"}};
  const auto size = [&] { return rank_info_from(of(slurm)).local_world_size; };
  slurm["SLURM_NODEID"] = "0";
  CHECK(size() == 2);
  slurm["SLURM_NODEID"] = "2";
  CHECK(size() == 2);
  slurm["SLURM_NODEID"] = "3";
  CHECK(size() == 1);
  slurm["SLURM_NODEID"] = "4";
  CHECK(refusal(slurm) ==
        "launcher slurm: SLURM_STEP_TASKS_PER_NODE: expected a list of tasks on each node like 2(x3),1 with an entry "
        "for this one, got '2(x3),1'");
  slurm.erase("SLURM_NODEID");
  CHECK(refusal(slurm).find("SLURM_NODEID is not set") != std::string::npos);
  for (const char* list : {"two", "2(x)", "2(x3", "2(x0)", "0", "", "2(y3)"}) {
    CAPTURE(list);
    slurm["SLURM_STEP_TASKS_PER_NODE"] = list;
    CHECK(refusal(slurm).find("SLURM_STEP_TASKS_PER_NODE: expected") != std::string::npos);
  }
  slurm.erase("SLURM_STEP_TASKS_PER_NODE");
  CHECK(size() == 8);
  slurm["SLURM_NTASKS_PER_NODE"] = "4";
  CHECK(size() == 4);
  slurm.erase("SLURM_NTASKS_PER_NODE");
  slurm.erase("SLURM_TASKS_PER_NODE");
  slurm["SLURM_LOCALID"] = "1";
  CHECK(size() == 2);
  // MPICH's ranks meet on loopback, too, where all of them are on this machine.
  const RankInfo info = rank_info_from(
      of({{"PMI_RANK", "0"}, {"PMI_SIZE", "3"}, {"MPI_LOCALRANKID", "0"}, {"MPI_LOCALNRANKS", "3"}}), "mpi");
  CHECK(info.local_world_size == 3);
  CHECK(info.store_host == "127.0.0.1");
}

TEST_CASE("what is missing or makes no sense is refused by name") {
  auto variables = torchrun();
  variables.erase("MASTER_ADDR");
  CHECK(refusal(variables) ==
        "launcher pytorch: MASTER_ADDR is not set; start the program through that launcher, or choose another");
  variables = torchrun();
  variables["RANK"] = "4";
  CHECK(refusal(variables) == "launcher pytorch: RANK: expected an integer from 0 to 3, got '4'");
  variables["RANK"] = "two";
  CHECK(refusal(variables) == "launcher pytorch: RANK: expected an integer from 0 to 3, got 'two'");
  variables = torchrun();
  variables["MASTER_ADDR"] = "10.0.0.1";
  CHECK(refusal(variables).find("CASTOR_JOB_SECRET is not set, and the job meets at 10.0.0.1") != std::string::npos);
  variables["CASTOR_JOB_SECRET"] = "short";
  CHECK(refusal(variables).find("at least 16 characters") != std::string::npos);
  CHECK(refusal({}, "slurm").find("SLURM_NTASKS is not set") != std::string::npos);
  CHECK(refusal({}, "ssh").find("expected pytorch, slurm, mpi, none or auto, got 'ssh'") != std::string::npos);
}

TEST_CASE("ranks of one loopback job have one secret, other jobs another") {
  auto variables = torchrun();
  const std::string secret = rank_info_from(of(variables)).secret;
  variables["RANK"] = "1";
  CHECK(rank_info_from(of(variables)).secret == secret);
  variables["TORCHELASTIC_RUN_ID"] = "another";
  CHECK(rank_info_from(of(variables)).secret != secret);
}
