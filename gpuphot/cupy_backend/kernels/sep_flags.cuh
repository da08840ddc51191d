// Bits of SEP's flags; gpuphot.models.sep.SepFlag.
#pragma once

#define SEP_TRUNCATED 16
#define SEP_HAS_MASKED 32
#define SEP_ALL_MASKED 64
#define SEP_NON_POSITIVE 128
