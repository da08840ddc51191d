// Exact overlap of a pixel with a circle.
//
// It is the second difference, over the pixel's corners (a, b), of the circle's area between the
// axes and the corner: a b inside the circle, else G(a) + G(b) - pi r^2 / 4 with
// G(u) = (u s + r^2 atan2(u, s)) / 2 and s = sqrt((r - u)(r + u)). G belongs to one edge.
#pragma once
#include "common.cuh"

// What the area up to a corner needs of one of its edges.
struct Edge {
    double u;  // coordinate clipped to [-r, r]
    double s;  // half chord
    double g;  // antiderivative G(u), odd in u
};

__device__ inline Edge edge_at(double coordinate, double r) {
    Edge edge;
    edge.u = fmin(fmax(coordinate, -r), r);
    // A product, not a difference of squares: exact near the rim, never negative.
    edge.s = sqrt((r - edge.u) * (r + edge.u));
    edge.g = 0.5 * (edge.u * edge.s + r * r * atan2(edge.u, edge.s));
    return edge;
}

__device__ inline double sign_of(double u) { return (u > 0) - (u < 0); }

// Area of the circle between the axes and the corner (a, b).
__device__ inline double corner_area(const Edge& a, const Edge& b, double quarter_circle) {
    if (fabs(a.u) <= b.s) return a.u * b.u;
    return a.g * sign_of(b.u) + sign_of(a.u) * (b.g - sign_of(b.u) * quarter_circle);
}

__device__ inline double overlap(const Edge& left, const Edge& right, const Edge& low,
                                 const Edge& high, double quarter_circle) {
    return (corner_area(right, high, quarter_circle) - corner_area(left, high, quarter_circle)) -
           (corner_area(right, low, quarter_circle) - corner_area(left, low, quarter_circle));
}
