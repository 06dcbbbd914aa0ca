// tinygrad compiles for a bare-metal target but calls the code with the system's calling
// convention.
#pragma once

#if WINDOWS
#define ABI __attribute__((ms_abi))
#else
#define ABI
#endif
