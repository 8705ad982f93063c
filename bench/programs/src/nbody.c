/* Five bodies that attract each other, in scalar SSE2 doubles. One iteration = one step. */
#include "bench.h"

#include <math.h>

enum { BODIES = 5 };
typedef struct {
    double x, y, z, vx, vy, vz, mass;
} body;

static body bodies[BODIES] = {
    {0, 0, 0, -0.0004, -0.0028, 0.00002, 39.5},
    {4.84, -1.16, -0.10, 0.606, 2.81, -0.02, 0.0377},
    {8.34, 4.12, -0.40, -1.01, 1.82, 0.008, 0.0113},
    {12.89, -15.11, -0.22, 1.08, 0.868, -0.01, 0.0017},
    {15.38, -25.92, 0.18, 0.979, 0.594, -0.034, 0.002},
};

static void advance(double dt) {
    for (int i = 0; i < BODIES; i++) {
        body *a = &bodies[i];
        for (int j = i + 1; j < BODIES; j++) {
            body *b = &bodies[j];
            double dx = a->x - b->x, dy = a->y - b->y, dz = a->z - b->z;
            double square = dx * dx + dy * dy + dz * dz;
            double pull = dt / (square * __builtin_sqrt(square));
            a->vx -= dx * b->mass * pull;
            a->vy -= dy * b->mass * pull;
            a->vz -= dz * b->mass * pull;
            b->vx += dx * a->mass * pull;
            b->vy += dy * a->mass * pull;
            b->vz += dz * a->mass * pull;
        }
    }
    for (int i = 0; i < BODIES; i++) {
        body *a = &bodies[i];
        a->x += dt * a->vx;
        a->y += dt * a->vy;
        a->z += dt * a->vz;
    }
}

int main(int argc, char **argv) {
    uint64_t count = count_of(argc, argv), sum = 0;
    for (uint64_t i = 0; i < count; i++)
        advance(0.001);
    for (int i = 0; i < BODIES; i++)
        sum = mix(mix(mix(sum, bits_of(bodies[i].x)), bits_of(bodies[i].y)), bits_of(bodies[i].z));
    return answer(sum);
}
