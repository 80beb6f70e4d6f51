/* Which version of the library this is, and what the CPU has that its variants need. */
#include "library.h"

int32_t cibhash_abi(void)
{
    return CIBHASH_ABI;
}

int32_t cibhash_level(void)
{
#if X86
    return __builtin_cpu_supports("avx2") ? AVX2 : PORTABLE;
#else
    return PORTABLE;
#endif
}
