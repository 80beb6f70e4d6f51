/* Which version of the library this is, and what the CPU has that its variants need. */
#include "library.h"

int32_t cibhash_abi(void)
{
    return CIBHASH_ABI;
}

int32_t cibhash_level(void)
{
#if X86
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("popcnt"))
        return PORTABLE;
    int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512vpopcntdq");
    return wide ? AVX512 : AVX2;
#else
    return PORTABLE;
#endif
}
