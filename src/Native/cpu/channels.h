// Work on [batch, time, channels] in which every channel is on its own: a vector holds neighbouring channels, and a thread takes a group of vectors of one batch row through time.
#pragma once
#include "parallel.h"

namespace {

struct Channels
{
    static constexpr i64 GroupVectors = 8; // so that memory is read in longer pieces

    i64 b, first, last, vectors; // batch row; channels [first, last)

    Channels(i64 channels, i64 groups, i64 item) : b(item / groups)
    {
        i64 all = (channels + Lanes - 1) / Lanes, n = item % groups;
        first = all * n / groups * Lanes;
        vectors = all * (n + 1) / groups - all * n / groups;
        last = first + vectors * Lanes < channels ? first + vectors * Lanes : channels;
    }

    // Groups per batch row; more of them where threads would have nothing to do.
    static i64 groups(i64 batch, i64 channels, i32 threads)
    {
        i64 all = (channels + Lanes - 1) / Lanes, groups = (all + GroupVectors - 1) / GroupVectors, wanted = batch == 0 ? 1 : (threads + batch - 1) / batch;
        return groups >= wanted ? groups : wanted < all ? wanted : all;
    }

    i64 channel(i64 v) const { return first + v * Lanes; }
    i64 lanes(i64 v) const { return last - channel(v) < Lanes ? last - channel(v) : (i64)Lanes; }
};

// Calls work(group) for all batch rows and channels.
template <class Work> void for_channels(i64 batch, i64 channels, i32 threads, const Work& work)
{
    i64 groups = Channels::groups(batch, channels, threads);
    parallel(batch * groups, threads, [&](i64 item) { work(Channels(channels, groups, item)); });
}

}
