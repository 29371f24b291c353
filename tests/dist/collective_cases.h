// The cases that every transport must pass, written once: each runs on one rank of a job and checks what it sees there.
#pragma once

#include "dist/comm.h"

namespace castor::test {

/// Every collective, dtypes, sizes from nothing to several blocks, uneven pieces; compared with sums computed here, in
/// order of ranks, bit by bit.
void check_collectives(dist::Comm& comm);
/// Started work, several at a time and mixed with blocking calls.
void check_started_work(dist::Comm& comm);
/// Groups of even and odd ranks, in reverse order, at work at once with the whole.
void check_split(dist::Comm& comm);
/// The last rank calls another size: all ranks catch the error and check that it says so. The job is failed afterwards.
void check_disagreement(dist::Comm& comm);

}  // namespace castor::test
