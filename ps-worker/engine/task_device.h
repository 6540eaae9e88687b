// Which GPUs a task of this program can compute on, and on which it does.
//
// Both GPU code of ours and a LibTorch for CUDA are needed; whatever is missing is said.
#pragma once

#include "common/job/job_spec.h"
#include "common/messages/control.h"
#include "common/result.h"
#include "ps-worker/engine/load.h"

namespace ps::worker {

// All that are there. Not for a process that trains: it holds memory of each.
control::DeviceReportT FindDevices();

// The CPU, or with resources.gpus the first so many GPUs that are there. kInvalid, with what is
// missing.
Result<TaskDevice> ChooseDevice(const JobSpec& spec);

}  // namespace ps::worker
