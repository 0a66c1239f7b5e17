// Written by points.py, which says where the numbers come from; don't edit.
#pragma once

constexpr int m = 4, n = 6;
constexpr float AT[4][6] = {
    {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 0.0f},
    {0.0f, 0.75f, -0.75f, 1.5f, -1.5f, 0.0f},
    {0.0f, 0.5625f, 0.5625f, 2.25f, 2.25f, 0.0f},
    {0.0f, 0.421875f, -0.421875f, 3.375f, -3.375f, 1.0f},
};
constexpr float BT[6][6] = {
    {1.265625f, 0.0f, -2.8125f, 0.0f, 1.0f, 0.0f},
    {0.0f, -1.6875f, -2.25f, 0.75f, 1.0f, 0.0f},
    {0.0f, 1.6875f, -2.25f, -0.75f, 1.0f, 0.0f},
    {0.0f, -0.84375f, -0.5625f, 1.5f, 1.0f, 0.0f},
    {0.0f, 0.84375f, -0.5625f, -1.5f, 1.0f, 0.0f},
    {0.0f, 1.265625f, 0.0f, -2.8125f, 0.0f, 1.0f},
};
