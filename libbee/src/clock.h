#ifndef BEE_CLOCK_H
#define BEE_CLOCK_H

/* Of a clock that only goes forward. */
double monotonic_seconds(void);

#endif
