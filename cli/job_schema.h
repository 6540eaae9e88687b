// docs/job.schema.json, as it was when the program was built.
#pragma once

namespace ps::cli {

extern const char* const kJobSchema;

}  // namespace ps::cli
