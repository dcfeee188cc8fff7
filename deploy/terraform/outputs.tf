output "address" {
  description = "Where callers find the service: TLS, port 443. Point the certificate's name at it."
  value       = module.service.address
}

output "repository_url" {
  description = "Where the pipeline pushes images."
  value       = module.registry.repository_url
}

output "deploy_role_arn" {
  description = "The role that the pipeline takes by OIDC; null where no GitHub repository was named."
  value       = module.identity.deploy_role_arn
}
